"""Veneer teaches a diffusion model a style or a subject with LoRA, and proves what it did.

Every name of ``__all__`` is imported when it is first asked for (PEP 562), so that ``import veneer`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veneer.adapter.dora import DoraFactors as DoraFactors
    from veneer.adapter.dora import DoraSpec as DoraSpec
    from veneer.adapter.inject import inject as inject
    from veneer.adapter.lora import LoraFactors as LoraFactors
    from veneer.adapter.lora import LoraSpec as LoraSpec
    from veneer.adapter.merge import combine as combine
    from veneer.adapter.merge import merge as merge
    from veneer.adapter.resize import resize as resize
    from veneer.adapter.stack import AdapterStack as AdapterStack
    from veneer.base import demo_path as demo_path
    from veneer.base import path as base_path
    from veneer.cli.terminal.progress import Progress as Progress
    from veneer.config.load import build_config as build_config
    from veneer.config.load import config_from_folder as config_from_folder
    from veneer.config.load import dump_config as dump_config
    from veneer.config.load import list_presets as list_presets
    from veneer.config.load import load_config as load_config
    from veneer.config.load import resolve as resolve
    from veneer.config.load import write_config as write_config
    from veneer.config.schema import RunConfig as RunConfig
    from veneer.data.preflight import survey as survey
    from veneer.doctor.gather import run_doctor as run_doctor
    from veneer.engine.adapter_bank import AdapterBank as AdapterBank
    from veneer.engine.memory_levels import prepare as prepare
    from veneer.errors import UserError as UserError
    from veneer.evaluate.heldout import score_adapter as score_adapter
    from veneer.evaluate.results import Evaluation as Evaluation
    from veneer.evaluate.results import Score as Score
    from veneer.evaluate.results import read_evaluation as read_evaluation
    from veneer.family.loading import load_base as load_base
    from veneer.plan.assessment import make_plan as make_plan
    from veneer.report.build import write_report as write_report
    from veneer.run.resume import Resume as Resume
    from veneer.run.session import run_training as run_training
    from veneer.run.signals import Interrupted as Interrupted
    from veneer.sample.comparison import comparison_sheet as comparison_sheet
    from veneer.sample.comparison import sample_prompts as sample_prompts
    from veneer.sample.generate import generate as generate
    from veneer.sample.generate import generate_clips as generate_clips
    from veneer.sample.generate import generate_each as generate_each
    from veneer.sample.sheet import sheet as sheet
    from veneer.study.config import build_study as build_study
    from veneer.study.config import load_study as load_study
    from veneer.study.ranks import RankStudyOptions as RankStudyOptions
    from veneer.study.ranks import study_ranks as study_ranks
    from veneer.study.run import run_study as run_study
    from veneer.train.loop import train as train_adapter
    from veneer.verbs.blend import BlendOptions as BlendOptions
    from veneer.verbs.blend import BlendSource as BlendSource
    from veneer.verbs.blend import BlockWeights as BlockWeights
    from veneer.verbs.blend import blend_adapters as blend_adapters
    from veneer.verbs.check import AdapterCheck as AdapterCheck
    from veneer.verbs.check import check_adapter as check_adapter
    from veneer.verbs.civitai import make_civitai_folder as make_civitai_folder
    from veneer.verbs.compare import compare_adapters as compare_adapters
    from veneer.verbs.convert import Conversion as Conversion
    from veneer.verbs.convert import convert_adapter as convert_adapter
    from veneer.verbs.data_check import check_pictures as check_pictures
    from veneer.verbs.edit import EditOptions as EditOptions
    from veneer.verbs.edit import edit_adapter as edit_adapter
    from veneer.verbs.evaluate import evaluate_adapter as evaluate_adapter
    from veneer.verbs.evaluation_inputs import EvaluationOptions as EvaluationOptions
    from veneer.verbs.extract import ExtractOptions as ExtractOptions
    from veneer.verbs.extract import extract_adapter as extract_adapter
    from veneer.verbs.merge import merge_adapters as merge_adapters
    from veneer.verbs.prune import PruneOptions as PruneOptions
    from veneer.verbs.prune import prune_adapter as prune_adapter
    from veneer.verbs.push import PushOptions as PushOptions
    from veneer.verbs.push import push_adapter as push_adapter
    from veneer.verbs.resize import resize_adapter as resize_adapter
    from veneer.verbs.sample import SampleOptions as SampleOptions
    from veneer.verbs.sample import sample_adapter as sample_adapter
    from veneer.verbs.verify import verify_adapter as verify_adapter
    from veneer.weights.file import FILE_NAME as FILE_NAME
    from veneer.weights.file import AdapterFile as AdapterFile
    from veneer.weights.file import load as load_adapter
    from veneer.weights.file import save as save_adapter
    from veneer.weights.summary import AdapterInfo as AdapterInfo
    from veneer.weights.summary import info as adapter_info

__all__ = [
    "FILE_NAME",
    "AdapterBank",
    "AdapterCheck",
    "AdapterFile",
    "AdapterInfo",
    "AdapterStack",
    "BlendOptions",
    "BlendSource",
    "BlockWeights",
    "Conversion",
    "DoraFactors",
    "DoraSpec",
    "EditOptions",
    "Evaluation",
    "EvaluationOptions",
    "ExtractOptions",
    "Interrupted",
    "LoraFactors",
    "LoraSpec",
    "Progress",
    "PruneOptions",
    "PushOptions",
    "RankStudyOptions",
    "Resume",
    "RunConfig",
    "SampleOptions",
    "Score",
    "UserError",
    "__version__",
    "adapter_info",
    "base_path",
    "blend_adapters",
    "build_config",
    "build_study",
    "check_adapter",
    "check_pictures",
    "combine",
    "compare_adapters",
    "comparison_sheet",
    "config_from_folder",
    "convert_adapter",
    "demo_path",
    "dump_config",
    "edit_adapter",
    "evaluate_adapter",
    "extract_adapter",
    "generate",
    "generate_clips",
    "generate_each",
    "inject",
    "list_presets",
    "load_adapter",
    "load_base",
    "load_config",
    "load_study",
    "make_civitai_folder",
    "make_plan",
    "merge",
    "merge_adapters",
    "prepare",
    "prune_adapter",
    "push_adapter",
    "read_evaluation",
    "resize",
    "resize_adapter",
    "resolve",
    "run_doctor",
    "run_study",
    "run_training",
    "sample_adapter",
    "sample_prompts",
    "save_adapter",
    "score_adapter",
    "sheet",
    "study_ranks",
    "survey",
    "train_adapter",
    "verify_adapter",
    "write_config",
    "write_report",
]

__version__ = "0.1.0"

_HOMES = {
    "FILE_NAME": "veneer.weights.file:FILE_NAME",
    "AdapterBank": "veneer.engine.adapter_bank:AdapterBank",
    "AdapterFile": "veneer.weights.file:AdapterFile",
    "LoraSpec": "veneer.adapter.lora:LoraSpec",
    "AdapterStack": "veneer.adapter.stack:AdapterStack",
    "Interrupted": "veneer.run.signals:Interrupted",
    "DoraFactors": "veneer.adapter.dora:DoraFactors",
    "DoraSpec": "veneer.adapter.dora:DoraSpec",
    "LoraFactors": "veneer.adapter.lora:LoraFactors",
    "RankStudyOptions": "veneer.study.ranks:RankStudyOptions",
    "SampleOptions": "veneer.verbs.sample:SampleOptions",
    "PushOptions": "veneer.verbs.push:PushOptions",
    "push_adapter": "veneer.verbs.push:push_adapter",
    "Progress": "veneer.cli.terminal.progress:Progress",
    "Resume": "veneer.run.resume:Resume",
    "RunConfig": "veneer.config.schema:RunConfig",
    "Evaluation": "veneer.evaluate.results:Evaluation",
    "read_evaluation": "veneer.evaluate.results:read_evaluation",
    "evaluate_adapter": "veneer.verbs.evaluate:evaluate_adapter",
    "EvaluationOptions": "veneer.verbs.evaluation_inputs:EvaluationOptions",
    "Score": "veneer.evaluate.results:Score",
    "UserError": "veneer.errors:UserError",
    "AdapterCheck": "veneer.verbs.check:AdapterCheck",
    "AdapterInfo": "veneer.weights.summary:AdapterInfo",
    "check_adapter": "veneer.verbs.check:check_adapter",
    "check_pictures": "veneer.verbs.data_check:check_pictures",
    "adapter_info": "veneer.weights.summary:info",
    "BlendOptions": "veneer.verbs.blend:BlendOptions",
    "BlockWeights": "veneer.verbs.blend:BlockWeights",
    "BlendSource": "veneer.verbs.blend:BlendSource",
    "blend_adapters": "veneer.verbs.blend:blend_adapters",
    "Conversion": "veneer.verbs.convert:Conversion",
    "convert_adapter": "veneer.verbs.convert:convert_adapter",
    "base_path": "veneer.base:path",
    "build_config": "veneer.config.load:build_config",
    "build_study": "veneer.study.config:build_study",
    "compare_adapters": "veneer.verbs.compare:compare_adapters",
    "EditOptions": "veneer.verbs.edit:EditOptions",
    "edit_adapter": "veneer.verbs.edit:edit_adapter",
    "PruneOptions": "veneer.verbs.prune:PruneOptions",
    "prune_adapter": "veneer.verbs.prune:prune_adapter",
    "combine": "veneer.adapter.merge:combine",
    "config_from_folder": "veneer.config.load:config_from_folder",
    "demo_path": "veneer.base:demo_path",
    "run_doctor": "veneer.doctor.gather:run_doctor",
    "dump_config": "veneer.config.load:dump_config",
    "generate": "veneer.sample.generate:generate",
    "generate_clips": "veneer.sample.generate:generate_clips",
    "generate_each": "veneer.sample.generate:generate_each",
    "inject": "veneer.adapter.inject:inject",
    "list_presets": "veneer.config.load:list_presets",
    "load_adapter": "veneer.weights.file:load",
    "load_config": "veneer.config.load:load_config",
    "load_study": "veneer.study.config:load_study",
    "load_base": "veneer.family.loading:load_base",
    "make_civitai_folder": "veneer.verbs.civitai:make_civitai_folder",
    "make_plan": "veneer.plan.assessment:make_plan",
    "merge": "veneer.adapter.merge:merge",
    "ExtractOptions": "veneer.verbs.extract:ExtractOptions",
    "extract_adapter": "veneer.verbs.extract:extract_adapter",
    "merge_adapters": "veneer.verbs.merge:merge_adapters",
    "resize": "veneer.adapter.resize:resize",
    "resize_adapter": "veneer.verbs.resize:resize_adapter",
    "prepare": "veneer.engine.memory_levels:prepare",
    "resolve": "veneer.config.load:resolve",
    "run_study": "veneer.study.run:run_study",
    "run_training": "veneer.run.session:run_training",
    "sample_adapter": "veneer.verbs.sample:sample_adapter",
    "save_adapter": "veneer.weights.file:save",
    "score_adapter": "veneer.evaluate.heldout:score_adapter",
    "study_ranks": "veneer.study.ranks:study_ranks",
    "comparison_sheet": "veneer.sample.comparison:comparison_sheet",
    "sample_prompts": "veneer.sample.comparison:sample_prompts",
    "sheet": "veneer.sample.sheet:sheet",
    "survey": "veneer.data.preflight:survey",
    "train_adapter": "veneer.train.loop:train",
    "verify_adapter": "veneer.verbs.verify:verify_adapter",
    "write_config": "veneer.config.load:write_config",
    "write_report": "veneer.report.build:write_report",
}
"""Where each public name lives; the names of subpackages are not among them, for an import of one would hide it."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'veneer' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    from veneer.silence import silence_notices

    with silence_notices():
        value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
