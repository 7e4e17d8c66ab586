"""Whether a cluster has room for the workers of a stage, and beside them for the engine of its validations."""

from mentalglm.config import TrainConfig
from mentalglm.errors import ConfigError
from mentalglm.scoring.pool import resources_of_an_engine


def gpus_of_a_worker(config: TrainConfig) -> float:
    """Raises: ConfigError where the cluster cannot hold the workers."""
    import ray

    workers, available = config.workers, ray.cluster_resources()
    num_gpus = workers.num_gpus
    if num_gpus is None:
        num_gpus = 1.0 if available.get("GPU") else 0.0
    least, most = workers.bounds
    for name, each in (("GPU", num_gpus), ("CPU", workers.num_cpus)):
        if each * least > available.get(name, 0):
            raise ConfigError(
                f"workers.num_workers = {least}: needs {each * least:g} {name}s, the cluster has "
                f"{available.get(name, 0):g}; lower it, or num_{name.lower()}s of a worker"
            )
    _check_room_beside(config, {"GPU": num_gpus * most, "CPU": workers.num_cpus * most}, available)
    return num_gpus


def _check_room_beside(config: TrainConfig, taken: dict[str, float], available: dict[str, float]) -> None:
    """Raises: ConfigError where the engine of validations has no room at all, or where early stopping would wait for
    validations that wait for training to end."""
    engine = config.selection.engine
    num_gpus, num_cpus = resources_of_an_engine(engine, engine.num_engines, available)
    for name, each in (("GPU", num_gpus), ("CPU", num_cpus)):
        wanted = each * engine.num_engines
        if wanted > available.get(name, 0):
            raise ConfigError(
                f"selection.engine: needs {wanted:g} {name}s, the cluster has {available.get(name, 0):g}; lower "
                f"num_engines or num_{name.lower()}s"
            )
        if config.selection.patience is not None and taken[name] + wanted > available.get(name, 0):
            raise ConfigError(
                f"selection.patience = {config.selection.patience}: validations need {wanted:g} {name}s beside the "
                f"{taken[name]:g} of training, the cluster has {available.get(name, 0):g}; leave patience out, or "
                f"lower num_{name.lower()}s of selection.engine or workers"
            )
