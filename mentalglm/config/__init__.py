"""Pydantic models of every job's YAML. Imports nothing heavy: `mentalglm --help` answers at once."""

from mentalglm.config.base import load_config, load_yaml, validate
from mentalglm.config.baseline import BaselineConfig
from mentalglm.config.bench import BenchConfig
from mentalglm.config.eval import EvalConfig, GoldConfig, TrainingTextsConfig
from mentalglm.config.posts import PostsConfig
from mentalglm.config.records import RecordsConfig
from mentalglm.config.report import ReportConfig, ReportedRunConfig
from mentalglm.config.review import ReviewConfig, ReviewedRunConfig
from mentalglm.config.score import (
    CascadeConfig,
    ClassifierEngineConfig,
    EchoEngineConfig,
    EncoderEngineConfig,
    EngineConfig,
    ExamplesConfig,
    GenerationConfig,
    InputConfig,
    ModelConfig,
    OpenAIEngineConfig,
    OutputConfig,
    PromptConfig,
    ScoreConfig,
    TfidfEngineConfig,
    VllmEngineConfig,
)
from mentalglm.config.storage import S3Config
from mentalglm.config.tables import TablesConfig
from mentalglm.config.train import StageConfig, TrainConfig

__all__ = [
    "BaselineConfig",
    "BenchConfig",
    "CascadeConfig",
    "ClassifierEngineConfig",
    "EchoEngineConfig",
    "EncoderEngineConfig",
    "EngineConfig",
    "EvalConfig",
    "ExamplesConfig",
    "GenerationConfig",
    "GoldConfig",
    "InputConfig",
    "ModelConfig",
    "OpenAIEngineConfig",
    "OutputConfig",
    "PostsConfig",
    "PromptConfig",
    "RecordsConfig",
    "ReportConfig",
    "ReportedRunConfig",
    "ReviewConfig",
    "ReviewedRunConfig",
    "S3Config",
    "ScoreConfig",
    "StageConfig",
    "TablesConfig",
    "TfidfEngineConfig",
    "TrainConfig",
    "TrainingTextsConfig",
    "VllmEngineConfig",
    "load_config",
    "load_yaml",
    "validate",
]
