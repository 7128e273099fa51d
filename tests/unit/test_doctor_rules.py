"""Each rule on evidence that it was made for, and on evidence that it must leave alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veneer.config.load import build_config
from veneer.config.override import set_key
from veneer.config.schema import RunConfig
from veneer.doctor.curve import final_loss, first_loss, lowest_loss, summarize, training_gain
from veneer.doctor.diagnosis import EXPLAINS, RULES, diagnose
from veneer.doctor.evidence import (
    CaptionStatistics,
    CopyCheck,
    Effect,
    Ending,
    Evidence,
    Measurements,
    MemoryEstimate,
    PictureCounts,
    ShuffledCaptions,
    ValidationScore,
    WeightChange,
    read_evidence,
    write_evidence,
)
from veneer.doctor.finding import Change, Finding, Rule, apply_change, percent
from veneer.doctor.measurements import effect_of
from veneer.doctor.rules import captions, endings, fit, learning_rate, pictures, settings, text_encoder
from veneer.doctor.rules.memory import out_of_memory
from veneer.errors import UserError
from veneer.evaluate.comparison import paired_difference

STEPS = 200
GAIN = Effect(-0.2, -0.24, -0.16, 0.6, 0.4, 32)
NOTHING = Effect(-0.001, -0.004, 0.002, 0.6, 0.599, 32)
HARM = Effect(0.3, 0.25, 0.35, 0.6, 0.9, 32)
KNOWN = Effect(0.1, 0.08, 0.12, 0.6, 0.7, 32)
UNKNOWN = Effect(0.001, -0.01, 0.012, 0.6, 0.601, 32)


def config_of(**keys: Any) -> RunConfig:
    values: dict[str, Any] = {"base": "bundled", "data": {"sources": [{"path": "pictures"}]}}
    settings = {"train.max_steps": STEPS, "train.learning_rate": 2e-3, "data.resolution": 64, **keys}
    for name, value in settings.items():
        set_key(values, name.replace("__", "."), value, "test")
    return build_config(values, "test")


def curve(first: float, last: float, steps: int = STEPS) -> Any:
    """A loss that falls or rises in a straight line, with a little noise of known size."""
    rows = [(n + 1, first + (last - first) * n / steps + 0.01 * (-1) ** n, 1.0) for n in range(steps)]
    return summarize(rows)


def evidence_of(config: RunConfig | None = None, **parts: Any) -> Evidence:
    """Of a healthy run, but for the parts given."""
    config = config or config_of()
    healthy: dict[str, Any] = {
        "ending": Ending("finished", config.train.max_steps),
        "loss_curve": curve(0.6, 0.4, config.train.max_steps),
        "skipped_steps": 0,
        "overflowed_steps": 0,
        "pictures": PictureCounts(100, 32, {}, 0, duplicates=0, near_duplicates=0, leaked=0, small=0, smallest=64),
        "captions": CaptionStatistics(100, 100, {"a": 1.0, "emoji": 1.0}, "a cat emoji"),
        "weight_changes": {"unet": WeightChange(80, 1.0, 5.0)},
        "held_out": GAIN,
        "training": Effect(-0.22, -0.25, -0.19, 0.6, 0.38, 32),
        "measurements": Measurements(
            train_captions=ShuffledCaptions(KNOWN, KNOWN), held_out_captions=ShuffledCaptions(KNOWN, KNOWN)
        ),
    }
    return Evidence(config=config, **{**healthy, **parts})


def found(rule: Rule, evidence: Evidence) -> Finding:
    finding = rule(evidence)
    assert finding is not None
    return finding


def overrides(finding: Finding) -> list[str]:
    return [change.override for change in finding.changes]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_finds_anything_in_a_healthy_run(rule: Rule) -> None:
    assert rule(evidence_of()) is None


def test_evidence_is_read_back_as_it_was_written() -> None:
    evidence = evidence_of(
        validation_scores=(ValidationScore(10, GAIN),),
        memory=MemoryEstimate(5, {"weights": 4}, None, {}),
        copies=CopyCheck(1, 8, 0.1, ("a", "b")),
    )
    assert read_evidence(write_evidence(evidence)) == evidence


class TestCurve:
    def test_stretches_cover_every_step_once(self) -> None:
        stretches = summarize([(n + 1, float(n), 1.0) for n in range(103)])
        assert len(stretches) == 40
        assert [one.first for one in stretches[1:]] == [one.last + 1 for one in stretches[:-1]]
        assert (stretches[0].first, stretches[-1].last) == (1, 103)

    def test_parts_have_the_mean_and_the_standard_error_of_their_steps(self) -> None:
        losses = [1.0, 3.0] * 40
        evidence = evidence_of(loss_curve=summarize([(n + 1, loss, 1.0) for n, loss in enumerate(losses)]))
        last = final_loss(evidence)
        assert last is not None
        assert (last.first, last.last, last.loss) == (61, 80, 2.0)
        # of pairs (1, 3): standard deviation sqrt 2, so standard error 1; ten of them: 1/sqrt 10
        assert last.error == pytest.approx(10**-0.5)

    def test_steps_that_are_not_finite_are_left_out(self) -> None:
        rows = [(n + 1, float("nan") if n % 2 else 0.5, float("nan")) for n in range(80)]
        (one, *_) = summarize(rows)
        assert (one.finite, one.loss, one.error, one.gradient) == (1, 0.5, None, None)
        assert first_loss(evidence_of(loss_curve=summarize(rows))) is not None

    def test_best_is_the_lowest_quarter(self) -> None:
        rows = [(n + 1, abs(n - 100) / 100, 1.0) for n in range(200)]
        lowest = lowest_loss(evidence_of(loss_curve=summarize(rows)))
        assert lowest is not None and lowest.first <= 100 <= lowest.last

    def test_gain_is_read_off_the_curve_where_nothing_was_measured(self) -> None:
        gain = training_gain(evidence_of(training=None))
        assert gain is not None
        assert gain.share == pytest.approx((0.425 - 0.6) / 0.6, abs=0.01)
        assert gain.half_width < 0.1

    def test_what_one_picture_gained_is_read_off_the_curve_too(self) -> None:
        one = Effect(-0.5, None, None, 0.6, 0.1, 1)
        assert training_gain(evidence_of(training=one)) == training_gain(evidence_of(training=None))

    @pytest.mark.parametrize("pictures", [2, 3, 5, 64])
    def test_the_standard_error_is_what_the_interval_was_made_of(self, pictures: int) -> None:
        gains = np.random.default_rng(pictures).normal(-0.2, 0.05, pictures)
        effect = effect_of(paired_difference(0.6 + gains[:, None], np.full((pictures, 1), 0.6)))
        error = gains.std(ddof=1) / math.sqrt(pictures)
        # from four pictures on the interval is the wider one of two
        assert effect.standard_error == pytest.approx(error, rel=1e-6 if pictures < 4 else 0.35)
        assert effect.standard_error >= error * (1 - 1e-6)

    def test_one_picture_tells_nothing_of_others(self) -> None:
        assert math.isinf(Effect(-0.5, None, None, 0.6, 0.1, 1).standard_error)

    def test_a_weighted_loss_is_not_held_against_the_plain_one(self) -> None:
        weighted = config_of(**{"objective.weighting": "min_snr"})
        gain = training_gain(evidence_of(weighted, training=None, loss_curve=curve(0.3, 0.2)))
        assert gain is not None and gain.share == pytest.approx(-0.29, abs=0.02)


class TestEndings:
    def test_nan_names_the_step_and_what_to_lower(self) -> None:
        text = "step 7: the loss is not finite, with a.png"
        finding = found(endings.nan, evidence_of(ending=Ending("failed", 6, "NonFinite", text)))
        assert "after step 6" in finding.evidence[0]
        assert "train.learning_rate=0.0002" in overrides(finding)

    def test_float16_is_blamed_first(self) -> None:
        half = config_of(**{"train.precision": "float16"})
        assert found(endings.nan, evidence_of(half, overflowed_steps=60)).changes[0].value == "bfloat16"
        assert endings.nan(evidence_of(half, overflowed_steps=4)) is None

    def test_skipped_steps_are_counted(self) -> None:
        assert "150 of 200" in found(endings.nan, evidence_of(skipped_steps=150)).evidence[0]

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"),
            ("MemoryError", ""),
            ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        ],
    )
    def test_out_of_memory_is_told_by_the_fault(self, kind: str, text: str) -> None:
        memory = MemoryEstimate(
            8 * 10**9, {"saved: attention": 6 * 10**9}, 4 * 10**9, {"train.memory=checkpoint": 3 * 10**9}
        )
        evidence = evidence_of(
            config_of(**{"train.batch_size": 6}), ending=Ending("failed", 0, kind, text), memory=memory
        )
        finding = found(out_of_memory, evidence)
        assert finding.sure
        assert "8.00 GB of 4.00 GB" in finding.evidence[1] and "saved: attention 6.00 GB" in finding.evidence[1]
        assert overrides(finding)[:3] == [
            "train.memory=checkpoint",
            "train.batch_size=3",
            "train.gradient_accumulation_steps=2",
        ]
        assert "3.00 GB" in finding.changes[0].why
        assert endings.failed(evidence) is None

    def test_what_onednn_says_is_likely_out_of_memory(self) -> None:
        ending = Ending("failed", 0, "RuntimeError", "could not create a primitive")
        finding = found(out_of_memory, evidence_of(ending=ending))
        assert not finding.sure and endings.failed(evidence_of(ending=ending)) is None

    def test_a_killed_run_beyond_the_machine_is_likely_out_of_memory(self) -> None:
        memory = MemoryEstimate(8 * 10**9, {}, 4 * 10**9, {})
        evidence = evidence_of(ending=Ending("cut off", 3), memory=memory)
        assert not found(out_of_memory, evidence).sure
        assert out_of_memory(replace(evidence, memory=replace(memory, available=10**11))) is None
        assert "3 of 200" in found(endings.cut_off, evidence).evidence[0]

    def test_a_killed_run_is_told_to_take_less_memory_only_where_that_was_scarce(self) -> None:
        memory = MemoryEstimate(8 * 10**9, {}, 4 * 10**9, {})
        evidence = evidence_of(ending=Ending("cut off", 3), memory=memory)
        assert overrides(found(endings.cut_off, evidence)) == ["train.memory=checkpoint"]
        assert found(endings.cut_off, replace(evidence, memory=None)).changes
        enough = found(endings.cut_off, replace(evidence, memory=replace(memory, available=10**11)))
        assert enough.changes == () and "Memory sufficed" in enough.what and "8.00 GB of 100" in enough.evidence[1]

    def test_another_fault_is_quoted(self) -> None:
        finding = found(endings.failed, evidence_of(ending=Ending("failed", 3, "UserError", "no such\nfile")))
        assert finding.evidence == ("after step 3: UserError: no such",)

    def test_a_run_that_was_stopped_is_no_illness(self) -> None:
        assert found(endings.unfinished, evidence_of(ending=Ending("stopped", 50))).level == "note"


class TestLearning:
    def test_dead_by_alpha(self) -> None:
        config = config_of(**{"adapter.alpha": 1e-6})
        finding = found(
            learning_rate.dead_adapter, evidence_of(config, weight_changes={"unet": WeightChange(80, 1e-7, 5.0)})
        )
        assert overrides(finding) == ["adapter.alpha=4"]

    def test_dead_by_rate(self) -> None:
        config = config_of(**{"train.learning_rate": 1e-12})
        finding = found(
            learning_rate.dead_adapter, evidence_of(config, weight_changes={"unet": WeightChange(80, 1e-7, 5.0)})
        )
        assert overrides(finding) == ["train.learning_rate=0.0001"]

    def test_dead_where_nothing_was_written(self) -> None:
        ending = Ending("failed", 1, "UserError", "was not written: every B is still zero")
        evidence = evidence_of(ending=ending, weight_changes={}, held_out=None)
        assert found(learning_rate.dead_adapter, evidence).name == "dead_adapter"
        assert [one.name for one in diagnose(evidence).findings if one.level == "problem"] == ["dead_adapter"]

    def test_one_living_network_is_enough(self) -> None:
        moved = {"unet": WeightChange(80, 1.0, 5.0), "text_encoder": WeightChange(8, 0.0, 5.0)}
        assert learning_rate.dead_adapter(evidence_of(weight_changes=moved)) is None

    def test_a_loss_that_rises_beyond_its_noise_has_diverged(self) -> None:
        finding = found(learning_rate.diverged, evidence_of(loss_curve=curve(0.4, 0.8)))
        assert "train.learning_rate=0.0002" in overrides(finding)
        assert learning_rate.diverged(evidence_of(loss_curve=curve(0.4, 0.41))) is None

    def test_a_loss_that_is_high_from_the_first_stretch_on_has_diverged_too(self) -> None:
        assert learning_rate.diverged(evidence_of(loss_curve=curve(3.0, 3.0))) is not None

    def test_harm_without_gain_is_a_rate_too_high(self) -> None:
        worse = evidence_of(held_out=HARM, training=HARM)
        assert found(learning_rate.rate_too_high, worse).name == "rate_too_high"
        assert learning_rate.rate_too_high(evidence_of(held_out=HARM)) is None  # the training pictures gain: overfit

    def test_what_outweighs_the_weights_is_no_underfit_but_a_rate_too_high(self) -> None:
        small = evidence_of(held_out=NOTHING, training=NOTHING, weight_changes={"unet": WeightChange(80, 4.0, 5.0)})
        large = replace(small, weight_changes={"unet": WeightChange(80, 6.0, 5.0)})
        assert found(fit.underfit, small) and learning_rate.rate_too_high(small) is None
        assert found(learning_rate.rate_too_high, large) and fit.underfit(large) is None

    def test_a_short_curve_has_noise_too(self) -> None:
        """One step a stretch: how far the steps differ is all that tells the noise, and it is much."""
        noise = [0.9, 1.3, 0.6, 1.1, 0.7, 1.4, 0.8, 1.2, 0.5, 1.0]
        rows = [(n + 1, noise[n % 10] + (0.3 if n >= 30 else 0.0) * (n % 2), 1.0) for n in range(40)]
        last = final_loss(evidence_of(loss_curve=summarize(rows)))
        assert last is not None and last.error > 0.05
        assert (
            learning_rate.diverged(evidence_of(config_of(**{"train.max_steps": 40}), loss_curve=summarize(rows)))
            is None
        )

    def test_hardly_moved_is_a_rate_too_low(self) -> None:
        evidence = evidence_of(
            weight_changes={"unet": WeightChange(80, 0.001, 5.0)}, held_out=NOTHING, training=NOTHING
        )
        assert "train.learning_rate=0.02" in overrides(found(learning_rate.rate_too_low, evidence))
        assert learning_rate.rate_too_low(replace(evidence, held_out=GAIN)) is None

    def test_little_gained_is_underfit(self) -> None:
        finding = found(fit.underfit, evidence_of(held_out=NOTHING, training=NOTHING))
        assert overrides(finding)[0] == "train.max_steps=600"
        assert "adapter.rank=8" in overrides(finding) and "adapter.text_encoders.text_encoder={}" in overrides(finding)

    def test_missing_layers_are_named(self) -> None:
        config = config_of(**{"adapter.target_modules": ["to_k"]})
        finding = found(fit.underfit, evidence_of(config, held_out=NOTHING, training=NOTHING))
        assert "adapter.target_modules=[to_k, to_q, to_v, to_out.0]" in overrides(finding)

    def test_five_steps_are_underfit_though_nothing_was_measured(self) -> None:
        five = config_of(**{"train.max_steps": 5})
        finding = found(fit.underfit, evidence_of(five, held_out=None, training=None))
        assert not finding.sure and "hardly begun" in finding.what

    def test_a_gap_is_overfit(self) -> None:
        evidence = evidence_of(
            held_out=Effect(-0.05, -0.09, -0.01, 0.6, 0.55, 32), training=Effect(-0.4, -0.45, -0.35, 0.6, 0.2, 8)
        )
        finding = found(fit.overfit, evidence)
        assert "12% of that gain" in finding.evidence[1]
        assert {"adapter.rank=2", "adapter.dropout=0.1", "train.optimizer.weight_decay=0.1"} <= set(overrides(finding))

    @pytest.mark.parametrize(("pictures", "is_seen"), [(1, False), (2, True), (3, True)])
    def test_a_gap_on_few_pictures_is_overfit_if_they_are_of_one_mind(self, pictures: int, is_seen: bool) -> None:
        """As two or three are held out of a folder of twenty or thirty."""
        alike = np.full((3, 1), 0.6) - np.array([[0.04], [0.06], [0.05]])
        held_out = effect_of(paired_difference(alike[:pictures], np.full((pictures, 1), 0.6)))
        evidence = evidence_of(held_out=held_out, training=Effect(-0.4, -0.45, -0.35, 0.6, 0.2, 18))
        assert (fit.overfit(evidence) is not None) is is_seen
        apart = np.full((2, 1), 0.6) - np.array([[0.2], [0.01]])
        split = effect_of(paired_difference(apart, np.full((2, 1), 0.6)))
        assert fit.overfit(replace(evidence, held_out=split)) is None

    @pytest.mark.parametrize("pictures", [2, 3])
    def test_a_score_of_few_pictures_that_was_better_before_is_overfit(self, pictures: int) -> None:
        """Twice the standard error above the best; Student's interval of so few is many times that wide."""
        gains = np.array([-0.2, -0.24, -0.22])[:pictures]
        effect = effect_of(paired_difference(0.6 + gains[:, None], np.full((pictures, 1), 0.6)))
        later = replace(effect, mean=effect.mean + 2.5 * effect.standard_error)
        scored = tuple(ValidationScore(step, one) for step, one in ((50, effect), (100, effect), (200, later)))
        assert fit.overfit(evidence_of(validation_scores=scored)) is not None
        one = replace(effect, low=None, high=None, pictures=1)
        assert (
            fit.overfit(evidence_of(validation_scores=tuple(replace(each, effect=one) for each in scored[:2]))) is None
        )

    def test_fewer_steps_leave_room_for_the_warm_up(self) -> None:
        copies = CopyCheck(5, 16, 0.4, ("p.png", "t.png"))
        for warmup, first in ((0, "train.max_steps=66"), (70, "train.max_steps=140"), (150, "train.warmup_steps=3")):
            config = config_of(**{"train.warmup_steps": warmup})
            finding = found(fit.overfit, evidence_of(config, copies=copies))
            assert overrides(finding)[0] == first
            assert apply_change(config, finding.changes[0]) != config
        config = config_of(**{"train.warmup_steps": 100})
        finding = found(fit.drift, evidence_of(config, drift=HARM))
        assert apply_change(config, finding.changes[0]) != config

    def test_a_score_that_was_better_before_is_overfit_and_says_when(self) -> None:
        scored = tuple(
            ValidationScore(step, replace(GAIN, mean=mean)) for step, mean in ((50, -0.1), (100, -0.2), (200, -0.1))
        )
        finding = found(fit.overfit, evidence_of(validation_scores=scored, checkpoints=(100, 200)))
        assert overrides(finding)[0] == "train.max_steps=100" and "is kept" in finding.changes[0].why
        steady = tuple(ValidationScore(step, GAIN) for step in (50, 100, 200))
        assert fit.overfit(evidence_of(validation_scores=steady)) is None

    def test_painted_copies_are_overfit(self) -> None:
        assert fit.overfit(evidence_of(copies=CopyCheck(5, 16, 0.4, ("p.png", "t.png")))) is not None
        assert fit.overfit(evidence_of(copies=CopyCheck(1, 16, 0.4, ("p.png", "t.png")))) is None

    def test_a_text_encoder_that_does_harm_is_overcooked(self) -> None:
        config = config_of(**{"adapter.text_encoders.text_encoder": {"learning_rate": 0.02}})
        harmed = replace(evidence_of().measurements or Measurements(), text_encoder=HARM)
        finding = found(text_encoder.text_encoder_overcooked, evidence_of(config, measurements=harmed))
        assert overrides(finding)[0] == "adapter.text_encoders.text_encoder.learning_rate=0.0002"
        for little in (GAIN, Effect(0.004, 0.001, 0.007, 0.6, 0.604, 32)):
            helped = replace(harmed, text_encoder=little)
            assert text_encoder.text_encoder_overcooked(evidence_of(config, measurements=helped)) is None

    def test_a_text_encoder_that_is_outweighed_is_overcooked_though_nothing_was_measured(self) -> None:
        config = config_of(**{"adapter.text_encoders.text_encoder": {"learning_rate": 0.02}})
        moved = {"unet": WeightChange(80, 1.0, 5.0), "text_encoder": WeightChange(8, 9.0, 5.0)}
        finding = found(
            text_encoder.text_encoder_overcooked, evidence_of(config, weight_changes=moved, measurements=None)
        )
        assert "180% of the size" in finding.evidence[0]
        told = found(text_encoder.text_encoder_overcooked, evidence_of(config, weight_changes=moved))
        assert "adds 17% of its loss, with the base 17%" in told.evidence[3]
        # a rate that is too high for all moves all
        for calm in (
            {**moved, "unet": WeightChange(80, 50.0, 5.0)},
            {**moved, "text_encoder": WeightChange(8, 0.5, 5.0)},
        ):
            assert text_encoder.text_encoder_overcooked(evidence_of(config, weight_changes=calm)) is None

    def test_drift_holds_the_class_more_firmly(self) -> None:
        config = config_of(**{"data.prior": {"prompt": "a cat", "weight": 0.1}})
        finding = found(fit.drift, evidence_of(config, drift=HARM, drift_source="pictures of the class"))
        assert overrides(finding)[0] == "data.prior.weight=1"
        assert fit.drift(evidence_of(config, drift=NOTHING)) is None


class TestPictures:
    def test_captions_that_fit_no_better_than_others_are_wrong(self) -> None:
        slipped = Measurements(ShuffledCaptions(UNKNOWN, UNKNOWN, ("a.png",)), ShuffledCaptions(UNKNOWN, KNOWN))
        finding = found(captions.captions_wrong, evidence_of(measurements=slipped))
        assert finding.sure and "a.png" in finding.evidence[2]

    def test_words_that_nobody_knows_may_be_right(self) -> None:
        unsure = Measurements(ShuffledCaptions(UNKNOWN, UNKNOWN), ShuffledCaptions(UNKNOWN, UNKNOWN))
        assert not found(captions.captions_wrong, evidence_of(measurements=unsure)).sure
        told_apart = Measurements(ShuffledCaptions(UNKNOWN, KNOWN), ShuffledCaptions(UNKNOWN, KNOWN))
        assert captions.captions_wrong(evidence_of(measurements=told_apart)) is None

    def test_wrong_captions_that_are_learned_by_heart_are_told_apart_less_than_held_out_ones(self) -> None:
        by_heart = Effect(0.012, 0.008, 0.016, 0.6, 0.612, 32)
        slipped = Measurements(ShuffledCaptions(UNKNOWN, by_heart), ShuffledCaptions(UNKNOWN, KNOWN))
        assert found(captions.captions_wrong, evidence_of(measurements=slipped)).sure
        right = Measurements(
            ShuffledCaptions(UNKNOWN, replace(by_heart, high=0.02)), ShuffledCaptions(UNKNOWN, by_heart)
        )
        assert captions.captions_wrong(evidence_of(measurements=right)) is None

    def test_who_learned_nothing_or_measured_roughly_is_no_judge(self) -> None:
        slipped = Measurements(ShuffledCaptions(UNKNOWN, UNKNOWN), ShuffledCaptions(UNKNOWN, KNOWN))
        assert captions.captions_wrong(evidence_of(measurements=slipped, training=NOTHING)) is None
        rough = replace(UNKNOWN, low=-0.1, high=0.2)
        assert captions.captions_wrong(evidence_of(measurements=Measurements(ShuffledCaptions(rough, rough)))) is None

    def test_style_words_in_every_caption_leak(self) -> None:
        styled = CaptionStatistics(100, 100, {"a": 1.0, "watercolor": 0.97}, "a cat, watercolor")
        finding = found(captions.captions_leak_style, evidence_of(captions=styled))
        assert "97%" in finding.evidence[0] and "'watercolor'" in finding.evidence[0]

    def test_one_caption_for_many_pictures(self) -> None:
        assert captions.captions_alike(evidence_of(captions=CaptionStatistics(100, 2, {}, "a thing"))) is not None
        assert captions.captions_alike(evidence_of(captions=CaptionStatistics(8, 1, {}, "a cat"))) is None

    def test_a_subject_needs_a_name(self) -> None:
        same = CaptionStatistics(5, 1, {"cat": 1.0}, "a cat")
        finding = found(captions.trigger_missing, evidence_of(captions=same))
        assert overrides(finding) == ["data.prior.prompt=a cat"]
        for named in (config_of(**{"data.trigger": "sks"}), config_of(**{"data.prior": {"prompt": "a cat"}})):
            assert captions.trigger_missing(evidence_of(named, captions=same)) is None

    def test_prompts_that_do_not_call(self) -> None:
        config = config_of(**{"data.trigger": "sks", "sample.prompts": ["a cat", "a dog: big"]})
        finding = found(captions.trigger_unused, evidence_of(config))
        changed = apply_change(config, finding.changes[0])
        assert changed.sample.prompts == ("a cat, sks", "a dog: big, sks")
        one_calls = config_of(**{"data.trigger": "sks", "sample.prompts": ["a cat", "a SKS dog"]})
        assert captions.trigger_unused(evidence_of(one_calls)) is None

    @pytest.mark.parametrize(
        ("rule", "change", "level"),
        [
            (pictures.few_pictures, {"train": 2}, "problem"),
            (pictures.duplicated, {"near_duplicates": 30}, "problem"),
            (pictures.duplicated, {"duplicates": 30}, "problem"),
            (pictures.held_out_leaked, {"leaked": 10}, "problem"),
            (pictures.blurred, {"small": 80, "smallest": 24}, "problem"),
            (pictures.blurred, {"small": 3, "smallest": 24}, "note"),
            (pictures.left_out, {"left_out": 50, "rejected": {"a.png": "no picture"}}, "problem"),
            (pictures.left_out, {"left_out": 1, "rejected": {"a.png": "no picture"}}, "note"),
            (pictures.no_held_out, {"held_out": 0}, "note"),
        ],
    )
    def test_counts(self, rule: Rule, change: dict[str, Any], level: str) -> None:
        evidence = evidence_of()
        assert found(rule, replace(evidence, pictures=replace(evidence.pictures, **change))).level == level

    def test_each_rule_names_its_own_pictures(self) -> None:
        both = replace(
            evidence_of().pictures,
            near_duplicates=30,
            small=80,
            smallest=24,
            near_duplicate_examples=("a.png",),
            small_examples=("s.png",),
        )
        evidence = evidence_of(pictures=both)
        assert "a.png" in found(pictures.duplicated, evidence).evidence[1]
        assert "s.png" in found(pictures.blurred, evidence).evidence[1]

    def test_nobody_counted_is_not_none(self) -> None:
        nobody = evidence_of(pictures=PictureCounts(0, 0, {}, 0, duplicates=0), captions=None)
        assert not {"few_pictures", "no_held_out"} & {one.name for one in diagnose(nobody).findings}

    def test_two_held_out_pictures_say_little(self) -> None:
        few = replace(GAIN, pictures=2)
        assert found(pictures.few_held_out, evidence_of(held_out=few)).level == "note"


class TestSettings:
    def test_warmup(self) -> None:
        finding = found(settings.warmup_too_long, evidence_of(config_of(**{"train.warmup_steps": 190})))
        assert "52%" in finding.evidence[1]
        assert settings.warmup_too_long(evidence_of(config_of(**{"train.warmup_steps": 20}))) is None

    def test_decay(self) -> None:
        strong = config_of(**{"train.optimizer.weight_decay": 50.0})
        assert "after 10 steps" in found(settings.decay_too_strong, evidence_of(strong)).evidence[0]

    def test_dropout(self) -> None:
        dropping = config_of(**{"adapter.dropout": 0.9, "data.caption_dropout": 0.8})
        keys = ["adapter.dropout=0.1", "data.caption_dropout=0.1"]
        assert overrides(found(settings.dropout_too_high, evidence_of(dropping))) == keys

    def test_strength_is_a_note(self) -> None:
        assert found(settings.strength_far_from_one, evidence_of(config_of(**{"adapter.alpha": 64.0}))).level == "note"


class TestDiagnosis:
    def test_a_cause_leaves_out_what_it_explains(self) -> None:
        config = config_of(**{"train.warmup_steps": 190})
        evidence = evidence_of(config, held_out=NOTHING, training=NOTHING)
        assert fit.underfit(evidence) is not None
        assert [one.name for one in diagnose(evidence).findings] == ["warmup_too_long"]

    def test_illnesses_come_before_notes(self) -> None:
        evidence = evidence_of(ending=Ending("stopped", 50), captions=CaptionStatistics(100, 1, {}, "a thing"))
        assert [one.level for one in diagnose(evidence).findings] == ["problem", "note"]

    def test_what_is_explained_exists(self) -> None:
        explained = {name for names in EXPLAINS.values() for name in names} | EXPLAINS.keys()
        assert explained <= {"cut_off", "failed", "drift", "nan", "out_of_memory"} | {rule.__name__ for rule in RULES}

    def test_what_cannot_be_judged_is_said_with_a_way(self) -> None:
        bare = evidence_of(measurements=None, held_out=None, weight_changes={}, captions=None, training=None)
        unjudged = diagnose(bare).unjudged
        assert len(unjudged) == 5 and all(one.how for one in unjudged)

    def test_without_a_log_nothing_is_said_of_the_ending(self) -> None:
        unlogged = evidence_of(ending=Ending("unknown", 0), loss_curve=())
        told = diagnose(unlogged)
        assert not told.has_problems and any("run.jsonl" in one.how for one in told.unjudged)
        assert not any("run.jsonl" in one.how for one in diagnose(evidence_of()).unjudged)

    def test_no_finding_without_evidence(self) -> None:
        with pytest.raises(AssertionError):
            Finding("overfit", "It is.", ())


@pytest.mark.parametrize(
    ("change", "override"),
    [
        (Change("train.max_steps", 3, ""), "train.max_steps=3"),
        (Change("train.learning_rate", 1e-5, ""), "train.learning_rate=1e-05"),
        (Change("train.learning_rate", 3 * 1e-4, ""), "train.learning_rate=0.0003"),
        (Change("train.learning_rate", 0.00012345678, ""), "train.learning_rate=0.00012345678"),
        (Change("adapter.alpha", 1024.0, ""), "adapter.alpha=1024"),
        (Change("adapter.alpha", 1 / 3, ""), "adapter.alpha=0.3333333333333333"),
        (Change("data.flip", True, ""), "data.flip=true"),
        (Change("train.max_grad_norm", None, ""), "train.max_grad_norm=null"),
        (Change("data.trigger", "no: 1", ""), 'data.trigger="no: 1"'),
        (Change("data.trigger", "true", ""), 'data.trigger="true"'),
        (Change("adapter.text_encoders.text_encoder", (), ""), "adapter.text_encoders.text_encoder={}"),
    ],
)
def test_changes_are_overrides(change: Change, override: str) -> None:
    assert change.override == override
    found: Any = apply_change(config_of(), change).model_dump()
    for part in change.key.split("."):
        found = found[part]
    value = pytest.approx(change.value, rel=1e-12) if isinstance(change.value, float) else change.value
    assert found == value if change.value != () else found is not None


def test_a_change_that_no_configuration_takes_is_refused() -> None:
    with pytest.raises(UserError, match="train"):
        apply_change(config_of(), Change("train.stepz", 3, ""))


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50%"), (-0.123, "-12%"), (0.0123, "1.2%"), (0.0, "0%"), (1.0, "100%")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
