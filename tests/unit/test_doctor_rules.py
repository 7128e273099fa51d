"""Each rule on evidence that it was made for, and on evidence that it must leave alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.evidence import GAIN, HARM, KNOWN, NOTHING, UNKNOWN, config_of, curve, evidence_of, find, overrides
from veneer.doctor.curve import final_loss, summarize
from veneer.doctor.diagnosis import RULES, diagnose
from veneer.doctor.evidence import (
    CaptionStatistics,
    CopyCheck,
    Effect,
    Ending,
    Measurements,
    MemoryEstimate,
    PictureCounts,
    ShuffledCaptions,
    ValidationScore,
    WeightChange,
)
from veneer.doctor.finding import Rule, apply_change
from veneer.doctor.measurements import effect_of
from veneer.doctor.rules import captions, endings, fit, learning_rate, pictures, settings, text_encoder
from veneer.doctor.rules.memory import out_of_memory
from veneer.evaluate.comparison import paired_difference
from veneer.run.faults import MAYBE_OUT_OF_MEMORY, OUT_OF_MEMORY


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_rule_finds_anything_in_a_healthy_run(rule: Rule) -> None:
    assert rule(evidence_of()) is None


class TestEndings:
    def test_nan_names_the_step_and_what_to_lower(self) -> None:
        text = "step 7: the loss is not finite, with a.png"
        finding = find(endings.nan, evidence_of(ending=Ending("failed", 6, "NonFinite", text, "train.loss_not_finite")))
        assert "after step 6" in finding.evidence[0]
        assert "train.learning_rate=0.0002" in overrides(finding)

    def test_float16_is_blamed_first(self) -> None:
        half = config_of(**{"train.precision": "float16"})
        assert find(endings.nan, evidence_of(half, overflowed_steps=60)).changes[0].value == "bfloat16"
        assert endings.nan(evidence_of(half, overflowed_steps=4)) is None

    def test_skipped_steps_are_counted(self) -> None:
        assert "150 of 200" in find(endings.nan, evidence_of(skipped_steps=150)).evidence[0]

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
            config_of(**{"train.batch_size": 6}), ending=Ending("failed", 0, kind, text, OUT_OF_MEMORY), memory=memory
        )
        finding = find(out_of_memory, evidence)
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
        ending = Ending("failed", 0, "RuntimeError", "could not create a primitive", MAYBE_OUT_OF_MEMORY)
        finding = find(out_of_memory, evidence_of(ending=ending))
        assert not finding.sure and endings.failed(evidence_of(ending=ending)) is None

    def test_a_killed_run_beyond_the_machine_is_likely_out_of_memory(self) -> None:
        memory = MemoryEstimate(8 * 10**9, {}, 4 * 10**9, {})
        evidence = evidence_of(ending=Ending("cut off", 3), memory=memory)
        assert not find(out_of_memory, evidence).sure
        assert out_of_memory(replace(evidence, memory=replace(memory, available=10**11))) is None
        assert "3 of 200" in find(endings.cut_off, evidence).evidence[0]

    def test_a_killed_run_is_told_to_take_less_memory_only_where_that_was_scarce(self) -> None:
        memory = MemoryEstimate(8 * 10**9, {}, 4 * 10**9, {})
        evidence = evidence_of(ending=Ending("cut off", 3), memory=memory)
        assert overrides(find(endings.cut_off, evidence)) == ["train.memory=checkpoint"]
        assert find(endings.cut_off, replace(evidence, memory=None)).changes
        enough = find(endings.cut_off, replace(evidence, memory=replace(memory, available=10**11)))
        assert enough.changes == () and "Memory sufficed" in enough.what and "8.00 GB of 100" in enough.evidence[1]

    def test_another_fault_is_quoted(self) -> None:
        finding = find(
            endings.failed, evidence_of(ending=Ending("failed", 3, "UserError", "no such\nfile", "data.no_such_folder"))
        )
        assert finding.evidence == ("after step 3: UserError: no such",)

    def test_a_run_that_was_stopped_is_no_problem(self) -> None:
        assert find(endings.unfinished, evidence_of(ending=Ending("stopped", 50))).level == "note"


class TestLearning:
    def test_dead_by_alpha(self) -> None:
        config = config_of(**{"adapter.alpha": 1e-6})
        finding = find(
            learning_rate.dead_adapter, evidence_of(config, weight_changes={"unet": WeightChange(80, 1e-7, 5.0)})
        )
        assert overrides(finding) == ["adapter.alpha=4"]

    def test_dead_by_rate(self) -> None:
        config = config_of(**{"train.learning_rate": 1e-12})
        finding = find(
            learning_rate.dead_adapter, evidence_of(config, weight_changes={"unet": WeightChange(80, 1e-7, 5.0)})
        )
        assert overrides(finding) == ["train.learning_rate=0.0001"]

    def test_dead_where_nothing_was_written(self) -> None:
        ending = Ending("failed", 1, "UserError", "was not written: nothing was learned", "adapter.untrained")
        evidence = evidence_of(ending=ending, weight_changes={}, held_out=None)
        assert find(learning_rate.dead_adapter, evidence).name == "dead_adapter"
        assert [one.name for one in diagnose(evidence).findings if one.level == "problem"] == ["dead_adapter"]

    def test_one_living_network_is_enough(self) -> None:
        moved = {"unet": WeightChange(80, 1.0, 5.0), "text_encoder": WeightChange(8, 0.0, 5.0)}
        assert learning_rate.dead_adapter(evidence_of(weight_changes=moved)) is None

    def test_a_loss_that_rises_beyond_its_noise_has_diverged(self) -> None:
        finding = find(learning_rate.diverged, evidence_of(loss_curve=curve(0.4, 0.8)))
        assert "train.learning_rate=0.0002" in overrides(finding)
        assert learning_rate.diverged(evidence_of(loss_curve=curve(0.4, 0.41))) is None

    def test_a_loss_that_is_high_from_the_first_stretch_on_has_diverged_too(self) -> None:
        assert learning_rate.diverged(evidence_of(loss_curve=curve(3.0, 3.0))) is not None

    def test_harm_without_gain_is_a_rate_too_high(self) -> None:
        worse = evidence_of(held_out=HARM, training=HARM)
        assert find(learning_rate.rate_too_high, worse).name == "rate_too_high"
        assert learning_rate.rate_too_high(evidence_of(held_out=HARM)) is None  # the training pictures gain: overfit

    def test_what_outweighs_the_weights_is_no_underfit_but_a_rate_too_high(self) -> None:
        small = evidence_of(held_out=NOTHING, training=NOTHING, weight_changes={"unet": WeightChange(80, 4.0, 5.0)})
        large = replace(small, weight_changes={"unet": WeightChange(80, 6.0, 5.0)})
        assert find(fit.underfit, small) and learning_rate.rate_too_high(small) is None
        assert find(learning_rate.rate_too_high, large) and fit.underfit(large) is None

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
        assert "train.learning_rate=0.02" in overrides(find(learning_rate.rate_too_low, evidence))
        assert learning_rate.rate_too_low(replace(evidence, held_out=GAIN)) is None

    def test_little_gained_is_underfit(self) -> None:
        finding = find(fit.underfit, evidence_of(held_out=NOTHING, training=NOTHING))
        assert overrides(finding)[0] == "train.max_steps=600"
        assert "adapter.rank=8" in overrides(finding) and "adapter.text_encoders.text_encoder={}" in overrides(finding)

    def test_missing_layers_are_named(self) -> None:
        config = config_of(**{"adapter.target_modules": ["to_k"]})
        finding = find(fit.underfit, evidence_of(config, held_out=NOTHING, training=NOTHING))
        assert "adapter.target_modules=[to_k, to_q, to_v, to_out.0]" in overrides(finding)

    def test_five_steps_are_underfit_though_nothing_was_measured(self) -> None:
        five = config_of(**{"train.max_steps": 5})
        finding = find(fit.underfit, evidence_of(five, held_out=None, training=None))
        assert not finding.sure and "hardly begun" in finding.what

    def test_a_gap_is_overfit(self) -> None:
        evidence = evidence_of(
            held_out=Effect(-0.05, -0.09, -0.01, 0.6, 0.55, 32), training=Effect(-0.4, -0.45, -0.35, 0.6, 0.2, 8)
        )
        finding = find(fit.overfit, evidence)
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
            finding = find(fit.overfit, evidence_of(config, copies=copies))
            assert overrides(finding)[0] == first
            assert apply_change(config, finding.changes[0]) != config
        config = config_of(**{"train.warmup_steps": 100})
        finding = find(fit.drift, evidence_of(config, drift=HARM))
        assert apply_change(config, finding.changes[0]) != config

    def test_a_score_that_was_better_before_is_overfit_and_says_when(self) -> None:
        scored = tuple(
            ValidationScore(step, replace(GAIN, mean=mean)) for step, mean in ((50, -0.1), (100, -0.2), (200, -0.1))
        )
        finding = find(fit.overfit, evidence_of(validation_scores=scored, checkpoints=(100, 200)))
        assert overrides(finding)[0] == "train.max_steps=100" and "is kept" in finding.changes[0].why
        steady = tuple(ValidationScore(step, GAIN) for step in (50, 100, 200))
        assert fit.overfit(evidence_of(validation_scores=steady)) is None

    def test_painted_copies_are_overfit(self) -> None:
        assert fit.overfit(evidence_of(copies=CopyCheck(5, 16, 0.4, ("p.png", "t.png")))) is not None
        assert fit.overfit(evidence_of(copies=CopyCheck(1, 16, 0.4, ("p.png", "t.png")))) is None

    def test_a_text_encoder_that_does_harm_is_overcooked(self) -> None:
        config = config_of(**{"adapter.text_encoders.text_encoder": {"learning_rate": 0.02}})
        harmed = replace(evidence_of().measurements or Measurements(), text_encoder=HARM)
        finding = find(text_encoder.text_encoder_overcooked, evidence_of(config, measurements=harmed))
        assert overrides(finding)[0] == "adapter.text_encoders.text_encoder.learning_rate=0.0002"
        for little in (GAIN, Effect(0.004, 0.001, 0.007, 0.6, 0.604, 32)):
            helped = replace(harmed, text_encoder=little)
            assert text_encoder.text_encoder_overcooked(evidence_of(config, measurements=helped)) is None

    def test_a_text_encoder_that_is_outweighed_is_overcooked_though_nothing_was_measured(self) -> None:
        config = config_of(**{"adapter.text_encoders.text_encoder": {"learning_rate": 0.02}})
        moved = {"unet": WeightChange(80, 1.0, 5.0), "text_encoder": WeightChange(8, 9.0, 5.0)}
        finding = find(
            text_encoder.text_encoder_overcooked, evidence_of(config, weight_changes=moved, measurements=None)
        )
        assert "180% of the size" in finding.evidence[0]
        finding = find(text_encoder.text_encoder_overcooked, evidence_of(config, weight_changes=moved))
        assert "adds 17% of its loss, with the base 17%" in finding.evidence[3]
        # a rate that is too high for all moves all
        for calm in (
            {**moved, "unet": WeightChange(80, 50.0, 5.0)},
            {**moved, "text_encoder": WeightChange(8, 0.5, 5.0)},
        ):
            assert text_encoder.text_encoder_overcooked(evidence_of(config, weight_changes=calm)) is None

    def test_drift_holds_the_class_more_firmly(self) -> None:
        config = config_of(**{"data.prior": {"prompt": "a cat", "weight": 0.1}})
        finding = find(fit.drift, evidence_of(config, drift=HARM, drift_source="pictures of the class"))
        assert overrides(finding)[0] == "data.prior.weight=1"
        assert fit.drift(evidence_of(config, drift=NOTHING)) is None


class TestPictures:
    def test_captions_that_fit_no_better_than_others_are_wrong(self) -> None:
        slipped = Measurements(ShuffledCaptions(UNKNOWN, UNKNOWN, ("a.png",)), ShuffledCaptions(UNKNOWN, KNOWN))
        finding = find(captions.captions_wrong, evidence_of(measurements=slipped))
        assert finding.sure and "a.png" in finding.evidence[2]

    def test_words_that_nobody_knows_may_be_right(self) -> None:
        unsure = Measurements(ShuffledCaptions(UNKNOWN, UNKNOWN), ShuffledCaptions(UNKNOWN, UNKNOWN))
        assert not find(captions.captions_wrong, evidence_of(measurements=unsure)).sure
        told_apart = Measurements(ShuffledCaptions(UNKNOWN, KNOWN), ShuffledCaptions(UNKNOWN, KNOWN))
        assert captions.captions_wrong(evidence_of(measurements=told_apart)) is None

    def test_wrong_captions_that_are_learned_by_heart_are_told_apart_less_than_held_out_ones(self) -> None:
        by_heart = Effect(0.012, 0.008, 0.016, 0.6, 0.612, 32)
        slipped = Measurements(ShuffledCaptions(UNKNOWN, by_heart), ShuffledCaptions(UNKNOWN, KNOWN))
        assert find(captions.captions_wrong, evidence_of(measurements=slipped)).sure
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
        finding = find(captions.captions_leak_style, evidence_of(captions=styled))
        assert "97%" in finding.evidence[0] and "'watercolor'" in finding.evidence[0]

    def test_one_caption_for_many_pictures(self) -> None:
        assert captions.captions_alike(evidence_of(captions=CaptionStatistics(100, 2, {}, "a thing"))) is not None
        assert captions.captions_alike(evidence_of(captions=CaptionStatistics(8, 1, {}, "a cat"))) is None

    def test_captions_that_the_run_told_to_be_cut_are_told_again(self) -> None:
        found = find(captions.captions_cut, evidence_of(unread_texts=("1 of 9 captions; a.png: not read: 'x'",)))
        assert found.evidence == ("1 of 9 captions; a.png: not read: 'x'",)

    def test_a_subject_needs_a_name(self) -> None:
        same = CaptionStatistics(5, 1, {"cat": 1.0}, "a cat")
        finding = find(captions.trigger_missing, evidence_of(captions=same))
        assert overrides(finding) == ["data.prior.prompt=a cat"]
        for named in (config_of(**{"data.trigger": "sks"}), config_of(**{"data.prior": {"prompt": "a cat"}})):
            assert captions.trigger_missing(evidence_of(named, captions=same)) is None

    def test_prompts_that_do_not_call(self) -> None:
        config = config_of(**{"data.trigger": "sks", "sample.prompts": ["a cat", "a dog: big"]})
        finding = find(captions.trigger_unused, evidence_of(config))
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
        assert find(rule, replace(evidence, pictures=replace(evidence.pictures, **change))).level == level

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
        assert "a.png" in find(pictures.duplicated, evidence).evidence[1]
        assert "s.png" in find(pictures.blurred, evidence).evidence[1]

    def test_nobody_counted_is_not_none(self) -> None:
        nobody = evidence_of(pictures=PictureCounts(0, 0, {}, 0, duplicates=0), captions=None)
        assert not {"few_pictures", "no_held_out"} & {one.name for one in diagnose(nobody).findings}

    def test_two_held_out_pictures_say_little(self) -> None:
        few = replace(GAIN, pictures=2)
        assert find(pictures.few_held_out, evidence_of(held_out=few)).level == "note"


class TestSettings:
    def test_warmup(self) -> None:
        finding = find(settings.warmup_too_long, evidence_of(config_of(**{"train.warmup_steps": 190})))
        assert "52%" in finding.evidence[1]
        assert settings.warmup_too_long(evidence_of(config_of(**{"train.warmup_steps": 20}))) is None

    def test_decay(self) -> None:
        strong = config_of(**{"train.optimizer.weight_decay": 50.0})
        assert "after 10 steps" in find(settings.decay_too_strong, evidence_of(strong)).evidence[0]

    def test_dropout(self) -> None:
        dropping = config_of(**{"adapter.dropout": 0.9, "data.caption_dropout": 0.8})
        keys = ["adapter.dropout=0.1", "data.caption_dropout=0.1"]
        assert overrides(find(settings.dropout_too_high, evidence_of(dropping))) == keys

    def test_strength_is_a_note(self) -> None:
        assert find(settings.strength_far_from_one, evidence_of(config_of(**{"adapter.alpha": 64.0}))).level == "note"
