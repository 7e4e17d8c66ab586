"""The paper's tables as data, each figure beside the one that runs of this system give."""

from mentalglm.evaluation.paper.job import write_tables
from mentalglm.evaluation.paper.measured import FilledTable, fill
from mentalglm.evaluation.paper.published import PaperTable, load_table, table_names

__all__ = ["FilledTable", "PaperTable", "fill", "load_table", "table_names", "write_tables"]
