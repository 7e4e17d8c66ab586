"""Joining Ray: the cluster that a job runs on, or one of its own on this machine."""

import logging
import os
import signal
import threading

from mentalglm import storage
from mentalglm.errors import ConfigError, InterruptedRunError


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS names (a submitted job has it), else starts one on this machine."""
    # Ray's core writes notes for its developers to the terminal; the session's log files keep what matters.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else a thread that comes to Ray after its end would join whatever cluster it finds.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    import ray
    import ray.data

    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    for handler in [*logging.getLogger("ray.data").handlers, *logging.getLogger("ray.train").handlers]:
        if isinstance(handler, logging.StreamHandler):  # the terminal is ours; the log files stay as they are
            handler.setLevel(logging.ERROR)
    if not ray.is_initialized():
        # Without an address ray.init() would join whatever cluster happens to run on this machine.
        address = os.environ.get("RAY_ADDRESS", "local")
        if address.startswith("http"):
            raise ConfigError(
                f"RAY_ADDRESS = {address}: is the address for submitting jobs; use cluster/submit.sh, or unset it"
            )
        local = {"include_dashboard": False} if address == "local" else {}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        in_main_thread = threading.current_thread() is threading.main_thread()
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except SystemExit:  # Ray's own answer to SIGTERM, with a code of its own
            raise KeyboardInterrupt from None
        except Exception as error:  # nothing of a post is known to it yet
            said = (str(error).splitlines() or [""])[0][:200]
            where = "started on this machine" if address == "local" else f"joined at RAY_ADDRESS = {address}"
            raise InterruptedRunError(
                f"Ray could not be {where} ({type(error).__name__}: {said}); see to it and run the same command again"
            ) from None
        finally:
            if in_main_thread:
                signal.signal(signal.SIGTERM, on_sigterm)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A lane gives back nothing until all is done; engines that hang are the engine room's to notice.
    context.execution_no_progress_timeout_s = -1


def lasting_output(uri: str) -> str:
    """`uri` as an absolute address, for `output.uri`.

    Raises: ConfigError for a relative one of a submitted job, which would vanish with Ray's copy of the folder.
    """
    output = storage.absolute(uri)
    if output != uri.removeprefix("file://") and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ConfigError(
            f"output.uri = {uri}: is relative, and a submitted job runs in a copy of its folder that Ray deletes; give "
            "a path from the root that every node sees, or s3://"
        )
    return output
