"""Vision-language checkpoints of three families against the plain way, and ScienceQA from its published folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.result import Evaluation
from eval.tasks import scienceqa
from tests.support import eval_checkpoints, eval_vision
from tests.support.eval_vision import FAMILIES
from zerotune.common.errors import UserError
from zerotune.data.rows import load, local
from zerotune.inference.checkpoint import Checkpoint, open_checkpoint
from zerotune.inference.requests import Generate, Generated, Request, Score, Scored
from zerotune.inference.vision import VisionModel

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    for family in FAMILIES:
        eval_vision.save(folder / family, family)
    eval_vision.questions(folder / "data")
    eval_checkpoints.save(folder / "text")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, root: Path) -> Checkpoint:
    return open_checkpoint(str(root / request.param), request.param)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> VisionModel:
    loaded = checkpoint.load("vision", "fp32", "none", torch.device("cpu"))
    assert isinstance(loaded, VisionModel)
    return loaded


@pytest.fixture(scope="module")
def files(root: Path) -> list[str]:
    return [str(root / "data" / "images" / str(k) / "image.png") for k in range(3)]


def answered(model: VisionModel, requests: Sequence[Request]) -> list[Any]:
    """In the order of the requests."""
    answers = dict(model.answers(requests))
    return [answers[k] for k in range(len(requests))]


def asked(checkpoint: Checkpoint, *files: str, text: str = "What is it?") -> tuple[int, ...]:
    return checkpoint.prompter("tokenizer", 8, 0).image_prompt(files, text)


def plain_logits(model: VisionModel, ids: tuple[int, ...], files: tuple[str, ...]) -> Any:
    """The whole sequence in one pass, whole logits."""
    with torch.no_grad():
        return model.model(**model.images.inputs(ids, files)).logits[0].double()


def test_prompts_and_pixels_are_those_of_transformers_own_processor(checkpoint: Checkpoint, files: list[str]) -> None:
    if checkpoint.name == "qwen2_vl":
        pytest.importorskip("torchvision", reason="AutoProcessor needs it for this family's videos")
    prompter = checkpoint.prompter("tokenizer", 8, 0)
    text = prompter._image_prompt_text(1, "What is it?")
    with Image.open(files[2]) as image:
        theirs = AutoProcessor.from_pretrained(checkpoint.folder, backend="pil")(
            text=text, images=[image.convert("RGB")], return_tensors="pt"
        )
    ids = prompter.image_prompt(files[2:], "What is it?")
    assert list(ids) == theirs["input_ids"][0].tolist()
    ours = checkpoint.images.inputs(ids, files[2:])
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_larger_images_take_more_tokens(root: Path, files: list[str]) -> None:
    checkpoint = open_checkpoint(str(root / "qwen2_vl"), "qwen2_vl")
    mark = checkpoint.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert [asked(checkpoint, file).count(mark) for file in files] == [1, 4, 8]  # 28 x 28 pixels each, by rounding


def test_letters_are_scored_as_in_whole_passes(checkpoint: Checkpoint, model: VisionModel, files: list[str]) -> None:
    prompter = checkpoint.prompter("tokenizer", 8, 0)
    requests = [
        Score(asked(checkpoint, file), prompter.response_start(text), images=(file,))
        for file in files
        for text in ("A", "B", "C", "Beijing")
    ]
    scored = answered(model, requests)
    for request, one in zip(requests, scored, strict=True):
        whole = request.prefix_ids + request.continuation_ids
        log_probs = plain_logits(model, whole, request.images).log_softmax(-1)
        own = log_probs[len(request.prefix_ids) - 1 : -1]
        expected = own.gather(-1, torch.tensor(request.continuation_ids)[:, None]).sum()
        assert one.log_prob == pytest.approx(float(expected), abs=1e-4)
        assert one.greedy == (own.argmax(-1).tolist() == list(request.continuation_ids))
        assert one.tokens == len(request.continuation_ids)
    assert len({one.log_prob for one in scored[::4]}) == 3  # the image has its say


def test_generation_is_greedy(checkpoint: Checkpoint, model: VisionModel, files: list[str]) -> None:
    ids = asked(checkpoint, files[1])
    said: list[int] = []
    for _ in range(6):
        said.append(int(plain_logits(model, (*ids, *said), (files[1],))[-1].argmax()))
    decode = model.tokenizer.decode
    before = model.tokens
    (whole,) = answered(model, [Generate(ids, 6, (), images=(files[1],))])
    assert model.tokens - before == len(ids) + 5
    text = decode(said, skip_special_tokens=True).rstrip("\ufffd")  # cut at a token, it ends in a whole letter
    assert whole == Generated(text, 6, finished=False)
    (stopped,) = answered(model, [Generate(ids, 6, (said[3],), images=(files[1],))])
    first = said.index(said[3])
    assert stopped == Generated(decode(said[:first], skip_special_tokens=True), first, finished=True)


def test_a_text_stops_generation(root: Path, files: list[str]) -> None:
    checkpoint = open_checkpoint(str(root / "qwen2_vl"), "qwen2_vl")
    model = checkpoint.load("vision", "fp32", "none", torch.device("cpu"))
    ids = asked(checkpoint, files[0], text="x")
    (whole,) = answered(model, [Generate(ids, 20, (), images=(files[0],))])
    mark = next(text for text in whole.text[3:] if text.isascii())
    (stopped,) = answered(model, [Generate(ids, 20, (), stop_texts=(mark,), images=(files[0],))])
    assert stopped.text == whole.text[: whole.text.index(mark)]
    assert stopped.finished


def test_answers_come_with_their_places(checkpoint: Checkpoint, model: VisionModel, files: list[str]) -> None:
    ids = asked(checkpoint, files[0])
    requests = [Generate(ids, 2, (), images=(files[0],)), Score(ids, (5,), images=(files[0],)), Score(ids, (6,))]
    assert [type(answer) for answer in answered(model, requests)] == [Generated, Scored, Scored]


def test_each_answer_comes_as_soon_as_it_is_there(
    checkpoint: Checkpoint, model: VisionModel, files: list[str], tmp_path: Path
) -> None:
    """So that it is in the journal, whatever happens to the next."""
    ids = asked(checkpoint, files[0])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    answers = model.answers([Score(ids, (5,), images=(files[0],)), Score(ids, (5,), images=(str(broken),))])
    assert next(answers)[0] == 0
    with pytest.raises(UserError, match="cannot be read"):
        next(answers)


def test_what_prepares_images_is_part_of_a_checkpoints_digests(root: Path, tmp_path: Path) -> None:
    """A changed mean or size changes answers: the journal must not take the old ones."""
    shutil.copytree(root / "llava", tmp_path / "llava")
    before = open_checkpoint(str(tmp_path / "llava"), "llava").digests()
    settings = tmp_path / "llava" / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.48145466", "0.5"))
    assert open_checkpoint(str(tmp_path / "llava"), "llava").digests() != before


def test_a_template_other_than_the_one_trained_with_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "llava", tmp_path / "llava")
    (tmp_path / "llava" / "run.json").write_text(json.dumps({"template_hash": "0" * 64}))
    given = ["--model", str(tmp_path / "llava"), "--tasks", "scienceqa", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="trained with another chat template"):
        evaluate(parse([*given, "--data", str(root / "data" / "problems.json")]), ALONE)


def test_an_images_mark_in_a_question_is_one_clear_error(root: Path, files: list[str]) -> None:
    with pytest.raises(UserError, match=r"image.png cannot be encoded: .*<image>"):
        asked(open_checkpoint(str(root / "llava"), "llava"), files[0], text="What does <image> mean?")


def run(root: Path, checkpoint: str, *words: str, tasks: str = "scienceqa,scienceqa_generation") -> Evaluation:
    data = str(root / "data" / "problems.json")
    given = ["--model", str(root / checkpoint), "--tasks", tasks, "--precision", "fp32", "--max_new_tokens", "4"]
    given += ["--out", str(root / "out")]
    return evaluate(parse([*given, *(words or ("--data", data))]), ALONE)


def test_scienceqa_whole(root: Path) -> None:
    found = run(root, "qwen2_vl")
    samples = found.samples["scienceqa"]["qwen2_vl"]
    assert [sample.id.rpartition(":")[2] for sample in samples] == ["2", "15", "29"]  # lines
    assert [len(sample.shown["log_probs"]) for sample in samples] == [2, 3, 2]
    assert [sample.groups["topic"] for sample in samples] == ["physics", "biology", "physics"]
    letters, generated = found.result.tasks
    assert {(group.group, group.name) for group in letters.metrics[0].groups} == {
        ("topic", "physics"),
        ("topic", "biology"),
    }
    assert [metric.name for metric in generated.metrics] == ["accuracy", "no_letter", "no_json"]
    assert generated.metrics[2].estimates[0].value == 1


def test_a_checkpoint_without_eyes_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="needs a model that reads images"):
        run(root, "text")


def test_raw_prompts_have_no_place_for_images(root: Path) -> None:
    with pytest.raises(UserError, match="qwen2_vl: images need a chat template"):
        run(root, "qwen2_vl", "--data", str(root / "data" / "problems.json"), "--template", "raw")


def test_missing_and_broken_images_are_named(root: Path, tmp_path: Path) -> None:
    row = {"question": "q?", "choices": ["a", "b"], "answer": 0, "image": "one.png"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"scienceqa: 1 of 1 images are missing, first .*rows.jsonl:1: .*one.png"):
        run(root, "llava", "--data", str(rows), tasks="scienceqa")
    (tmp_path / "one.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"one.png: this image cannot be read"):
        run(root, "llava", "--data", str(rows), tasks="scienceqa")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"choices": ["a"]}, "choices is not a list of 2 to 10 texts"),
        ({"answer": 2}, "answer is 2, not the number of a choice from 0 to 1"),
        ({"answer": "A"}, "answer is 'A', not the number"),
        ({"answer": True}, "answer is true, not the number of a choice from 0 to 1"),
        ({"answer": "2"}, "answer is '2', not the number of a choice from 0 to 1"),
        ({"answer": "-1"}, "answer is '-1', not the number"),
        ({"answer": 1.0}, "answer is 1.0, not the number"),
        ({"choices": "a, b"}, "choices is not a list of 2 to 10 texts"),
        ({"question": ""}, "field `question` is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    row = {"question": "q?", "choices": ["a", "b"], "answer": 0, **change}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"rows.jsonl:1: {reason}"):
        load(local(str(tmp_path)), scienceqa.load)


def test_rows_may_stand_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('question,choices,answer,image\nq?,"[""red"", ""blue""]",1,a.png\n')
    (one,) = load(local(str(tmp_path)), scienceqa.load)
    assert (one.answer, one.options) == ("B", 2)
    assert "B. blue" in one.text


def test_images_in_the_rows_are_kept_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = Path(files[0]).read_bytes()
    row = {"question": "q?", "choices": ["a", "b"], "answer": 0, "image": {"bytes": content, "path": None}}
    parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "rows.parquet")
    first, second = scienceqa.arrange(load(local(str(tmp_path / "rows.parquet")), scienceqa.load))
    assert first.image == second.image
    assert first.image is not None
    assert Path(first.image).read_bytes() == content


def question() -> scienceqa.ImageChoiceItem:
    return scienceqa.ImageChoiceItem("x:1", "Question: q?\n", 3, "B", "a.png", "test", {})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('```json\n{"answer": "B", "explanation": "A is not"}\n```', (1, 0, 0)),
        ('{"answer": "(b) green"}', (1, 0, 0)),
        ('{"answer": "B. green"', (1, 0, 0)),
        ("The answer is B.", (1, 0, 1)),
        ("D", (0, 1, 1)),
    ],
)
def test_generated_letters(text: str, values: tuple[float, ...]) -> None:
    sample = scienceqa.score_generated(question(), [Generated(text)])
    assert tuple(sample.values[name] for name in ("accuracy", "no_letter", "no_json")) == values


def test_the_published_questions(root: Path, shared_data: Path) -> None:
    found = run(root, "qwen2_vl", "--data", str(shared_data / "scienceqa" / "problems.json"), tasks="scienceqa")
    samples = found.samples["scienceqa"]["qwen2_vl"]
    assert len(samples) == 24
    assert not found.result.tasks[0].skipped
    assert samples[1].id.endswith("problems.json:21")
    assert {sample.groups["subject"] for sample in samples} == {"natural science", "social science"}
