"""Makes data sets of numbers for objective numeric (docs/numbers.md).

    python examples/make_numbers.py OUT [--rows 200]

Published sets, of sentences whose number nothing announces: its distribution is all that can be learned. `train`,
`validation` and `plain` hold uniform values, `extreme` adds heavy tails, `boundary` holds seven round values;
`questions` repeats the value of its sentence as an answer.

Reading sets, in English and Chinese, of questions about statements: `reading` asks for one of their values,
`reading_far` for one 10 to 100 times larger than any in training, `arithmetic` for a sum or difference, and `words` for
what is no number. `reading_train` has all of these; the others share neither templates nor values with it.
`reading_validation` is like `reading`.

The output is the same every time; a larger set begins with the rows of a smaller one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SEED = 15
IN_EXAMPLES = {"train": 1000, "plain": 200, "reading_train": 400, "reading": 100}  # rows kept in examples/data
Row = dict[str, str]

# The published sets (values rounded to cents).
SENTENCES = (
    "The price is {} dollars.", "The temperature is {} degrees.", "The distance is {} kilometers.",
    "The weight is {} kilograms.", "The height is {} meters.", "The speed is {} mph.", "The cost is {} yuan.",
    "The time is {} hours.",
)  # fmt: skip
QUESTIONS = (
    "The item costs {} dollars. What is the price?", "The journey takes {} hours. How long is the journey?",
    "The building is {} meters tall. What is the height?", "The car weighs {} kg. What is the weight?",
)  # fmt: skip
BOUNDARIES = (0, 1, 0.001, 0.1, 10, 100, 1000)

# The reading sets.
TRAINED = 0.1, 1e4  # values are log-uniform between these
FAR = 10 * TRAINED[1], 100 * TRAINED[1]


class Statement(NamedTuple):
    """A thing with a value. unit: how the answer writes the value."""

    thing: str
    told: str
    asked: str
    unit: str


class Language(NamedTuple):
    """Templates of one language. dated: a statement's date, before it. first, day: questions whose answer is a thing
    or the date. change: (question, sign) with the operands a and b.
    """

    between: str
    answer: str
    dated: str
    date: str
    first: str
    day: str
    change: tuple[tuple[str, int], ...]
    statements: tuple[Statement, ...]


ENGLISH = Language(
    between=" ", answer="It is {}.", dated="Report of {}.", date="{:04}-{:02}-{:02}",
    first="What is described first?", day="Which day is the report of?",
    change=(
        ("Ann has {a} apples and buys {b} more. How many apples does she have now?", 1),
        ("A library owns {a} books and receives {b} new ones. How many books does it own?", 1),
        ("Ben had {a} coins and spent {b}. How many coins are left?", -1),
        ("Of {a} seats, {b} are taken. How many seats are free?", -1),
    ),
    statements=(
        Statement("the parcel", "The parcel weighs {} kg.", "How heavy is the parcel?", "{} kg"),
        Statement("the ticket", "The ticket costs ${}.", "What does the ticket cost?", "${}"),
        Statement("the bridge", "The bridge is {} metres long.", "How long is the bridge?", "{} metres"),
        Statement("the tank", "The tank holds {} litres.", "How much does the tank hold?", "{} litres"),
        Statement("the oven", "The oven is at {}°C.", "How hot is the oven?", "{}°C"),
        Statement("the farm", "The farm sold {} eggs.", "How many eggs did the farm sell?", "{} eggs"),
        Statement("the cable", "The cable carries {}V.", "What voltage does the cable carry?", "{}V"),
        Statement("the trip", "The trip covers {} km.", "How far is the trip?", "{} km"),
        Statement("the room", "The room measures {} square feet.", "How large is the room?", "{} square feet"),
        Statement("the loan", "A bank lent EUR {}.", "How much did the bank lend?", "EUR {}"),
        Statement("the pump", "Every hour the pump moves {} gallons.", "What does the pump move?", "{} gallons"),
        Statement("the well", "They drilled the well {} feet deep.", "What is the depth of the well?", "{} feet"),
        Statement("the town", "In the town live {} people.", "How many people live in the town?", "{} people"),
        Statement("the signal", "The signal has {} Hz.", "What is the frequency of the signal?", "{} Hz"),
        Statement("the truck", "Its truck can carry {} tonnes.", "What can the truck carry?", "{} tonnes"),
        Statement("the battery", "The battery stores {} mAh.", "What is the battery's capacity?", "{} mAh"),
        Statement("the race", "Runners need {} minutes for the race.", "How long does the race take?", "{} minutes"),
        Statement("the fine", "For speeding, the fine is £{}.", "How high is the fine?", "£{}"),
        Statement("the star", "The star is {} light years away.", "How distant is the star?", "{} light years"),
        Statement("the field", "A farmer sowed a field of {} acres.", "How big is the field?", "{} acres"),
        Statement("the tower", "The tower rises to {} m.", "What height has the tower?", "{} m"),
        Statement("the archive", "The archive keeps {} letters.", "What number of letters is kept?", "{} letters"),
        Statement("the screen", "A pixel of the screen uses {} bytes.", "How many bytes are used?", "{} bytes"),
        Statement("the engineer", "The engineer earns {} dollars a day.", "What is the engineer paid?", "{} dollars"),
    ),
)  # fmt: skip
CHINESE = Language(
    between="", answer="是{}。", dated="{}的报告。", date="{}年{}月{}日",
    first="首先说的是什么？", day="这是哪天的报告？",
    change=(
        ("小明有{a}个苹果，又买了{b}个。现在有多少个苹果？", 1),
        ("书店有{a}本书，卖掉{b}本。还剩多少本书？", -1),
    ),
    statements=(
        Statement("包裹", "包裹重{}千克。", "包裹多重？", "{}千克"),
        Statement("门票", "门票{}元。", "门票多少钱？", "{}元"),
        Statement("大桥", "大桥长{}米。", "大桥多长？", "{}米"),
        Statement("水箱", "水箱能装{}升。", "水箱能装多少？", "{}升"),
        Statement("果园", "果园收了{}个梨。", "果园收了多少梨？", "{}个"),
        Statement("房间", "房间的面积是{}平方米。", "房间面积是多少？", "{}平方米"),
        Statement("列车", "列车每小时行{}公里。", "列车的速度是多少？", "{}公里"),
        Statement("小镇", "小镇住着{}人。", "小镇有多少人口？", "{}人"),
        Statement("电池", "这块电池的容量为{}毫安时。", "电池容量多大？", "{}毫安时"),
        Statement("贷款", "银行发放的贷款是{}元。", "贷款金额是多少？", "{}元"),
        Statement("油井", "油井深{}米。", "油井有多深？", "{}米"),
        Statement("图书馆", "图书馆藏书{}册。", "图书馆有多少册书？", "{}册"),
        Statement("工厂", "工厂每天用水{}吨。", "工厂每天用多少水？", "{}吨"),
        Statement("比赛", "跑完比赛用了{}分钟。", "比赛用了多长时间？", "{}分钟"),
        Statement("手机", "手机卖{}块钱。", "手机的价格是多少？", "{}块钱"),
        Statement("农田", "村里的农田有{}亩。", "农田有多少亩？", "{}亩"),
    ),
)  # fmt: skip
HELD_OUT = (
    ENGLISH._replace(
        dated="Notes from {}.", first="Which thing is named first?", day="On which day were the notes written?",
        change=(
            ("A depot stores {a} tyres; {b} more arrive. How many tyres are there in all?", 1),
            ("From {a} stamps, Mia gave away {b}. How many stamps remain?", -1),
        ),
        statements=(
            Statement("the statue", "The statue stands {} cm high.", "How high does the statue stand?", "{} cm"),
            Statement("the lamp", "You can buy the lamp for ${}.", "How much money is the lamp?", "${}"),
            Statement("the engine", "An engine burns {} gallons.", "How much fuel does the engine burn?", "{} gallons"),
            Statement("the quarry", "The quarry moved {} tons of rock.", "How much rock was moved?", "{} tons"),
            Statement("the comet", "The comet flew at {} km/h.", "How fast did the comet fly?", "{} km/h"),
        ),
    ),
    CHINESE._replace(
        dated="{}的日记。", first="最先提到的是什么？", day="日记是哪天写的？",
        change=(
            ("仓库里有{a}条毛巾，再运来{b}条。一共有多少条？", 1),
            ("小红存了{a}枚邮票，送人{b}枚。还有多少枚？", -1),
        ),
        statements=(
            Statement("雕像", "雕像高{}厘米。", "雕像有多高？", "{}厘米"),
            Statement("台灯", "买台灯要花{}元。", "买台灯要多少元？", "{}元"),
            Statement("货车", "货车运了{}吨煤。", "运了多少吨煤？", "{}吨"),
        ),
    ),
)  # fmt: skip


def uniform(draw: random.Random) -> float:
    return round(draw.uniform(0, 100), 2)


def extreme(draw: random.Random) -> float:
    """One in five is a Pareto(1) variable x 100 + 100; the published one starts at 0."""
    return round((draw.paretovariate(1) - 1) * 100 + 100, 2) if draw.random() < 0.2 else uniform(draw)


def sentence(draw: random.Random, value: Callable[[random.Random], float]) -> Row:
    return {"text": draw.choice(SENTENCES).format(value(draw))}


def question(draw: random.Random) -> Row:
    value = uniform(draw)
    return {"question": draw.choice(QUESTIONS).format(value), "answer": str(value)}


def is_held_out(value: float) -> bool:
    """Whether a value is for evaluation: one in five."""
    return zlib.crc32(repr(value).encode()) % 5 == 0


def spelled(draw: random.Random, held_out: bool, least: float, most: float) -> str:
    """A log-uniform value as an integer or with up to three decimals; half of the thousands have separators."""
    while True:
        value = least * (most / least) ** draw.random()
        size = math.floor(math.log10(value))
        places = draw.randint(0 if size > 0 else 1, max(3 - max(size, 0), 1))
        text = f"{value:,.{places}f}" if draw.random() < 0.5 else f"{value:.{places}f}"
        value = float(text.replace(",", ""))
        if least <= value <= most and is_held_out(value) == held_out:
            return text


def language(draw: random.Random, held_out: bool) -> Language:
    return draw.choice(HELD_OUT if held_out else (ENGLISH, CHINESE))


def row(texts: Language, asked: str, answer: str) -> Row:
    """subset: the language, by which an evaluation groups its results."""
    return {"question": asked, "answer": texts.answer.format(answer), "subset": "en" if texts.between else "zh"}


def about(draw: random.Random, held_out: bool, kind: str, least: float = TRAINED[0], most: float = TRAINED[1]) -> Row:
    """One to three statements, dated or not, and a question: for a value, the first thing or the day."""
    texts = language(draw, held_out)
    chosen = draw.sample(texts.statements, draw.randint(1, 3))
    values = [spelled(draw, held_out, least, most) for _ in chosen]
    told = [statement.told.format(value) for statement, value in zip(chosen, values, strict=True)]
    date = texts.date.format(draw.randint(1990, 2030), draw.randint(1, 12), draw.randint(1, 28))
    if kind == "day" or draw.random() < 0.3:
        told.insert(0, texts.dated.format(date))
    which = draw.randrange(len(chosen))
    ask, answer = {
        "value": (chosen[which].asked, chosen[which].unit.format(values[which])),
        "first": (texts.first, chosen[0].thing),
        "day": (texts.day, date),
    }[kind]
    return row(texts, texts.between.join([*told, ask]), answer)


def words(draw: random.Random, held_out: bool) -> Row:
    return about(draw, held_out, draw.choice(("first", "day")))


def arithmetic(draw: random.Random, held_out: bool) -> Row:
    """Sums and differences of integers below 1000."""
    texts = language(draw, held_out)
    asked, sign = draw.choice(texts.change)
    while True:
        a, b = sorted((draw.randint(1, 999) for _ in range(2)), reverse=True)
        if is_held_out(float(a)) == is_held_out(float(b)) == held_out:
            return row(texts, asked.format(a=a, b=b), str(a + sign * b))


def mixed(draw: random.Random) -> Row:
    """Of ten rows five ask for a value, three for words, two for arithmetic."""
    chance = draw.random()
    if chance < 0.5:
        return about(draw, False, "value")
    return words(draw, False) if chance < 0.8 else arithmetic(draw, False)


SETS: dict[str, tuple[Callable[[random.Random], Row], int]] = {  # name -> (one row, how many times --rows)
    "train": (lambda draw: sentence(draw, uniform), 5),
    "plain": (lambda draw: sentence(draw, uniform), 1),
    "questions": (question, 1),
    "extreme": (lambda draw: sentence(draw, extreme), 1),
    "validation": (lambda draw: sentence(draw, uniform), 1),
    "boundary": (lambda draw: sentence(draw, lambda one: one.choice(BOUNDARIES)), 1),
    "reading_train": (mixed, 20),
    "reading_validation": (lambda draw: about(draw, True, "value"), 1),
    "reading": (lambda draw: about(draw, True, "value"), 1),
    "reading_far": (lambda draw: about(draw, True, "value", *FAR), 1),
    "arithmetic": (lambda draw: arithmetic(draw, True), 1),
    "words": (lambda draw: words(draw, True), 1),
}


def rows(name: str) -> Iterator[Row]:
    """The rows of a set, without end."""
    draw = random.Random(f"{SEED} {name}")
    while True:
        yield SETS[name][0](draw)


def content(name: str, count: int) -> str:
    """The first rows of a set as JSONL."""
    lines = (json.dumps(made, ensure_ascii=False) for _, made in zip(range(count), rows(name), strict=False))
    return "".join(f"{line}\n" for line in lines)


def files() -> dict[str, str]:
    """File name -> content of every file that this script makes in examples/data."""
    return {f"numbers_{name}.jsonl": content(name, count) for name, count in IN_EXAMPLES.items()}


def write(out: Path, count: int) -> None:
    """All sets as NAME.jsonl; count: rows of an evaluation set."""
    out.mkdir(parents=True, exist_ok=True)
    for name, (_, times) in SETS.items():
        (out / f"{name}.jsonl").write_text(content(name, count * times), encoding="utf-8", newline="\n")


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=200, help="of an evaluation set; training sets are larger")
    options: Any = parser.parse_args()
    write(options.out, options.rows)


if __name__ == "__main__":
    main()
