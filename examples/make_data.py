"""Makes the small data sets in examples/data from the word lists below.

    python examples/make_data.py [--out examples/data]

The output is the same every time. The data is our own and free to use (examples/data/README.md).
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

SEED = 20
DEMO_ROWS = {"en": (150, 40), "zh": (50, 20)}  # language -> rows to train on, rows held out

# The demo: a customer's message becomes one fixed line.
ITEMS = {
    "en": "kettle toaster lamp chair desk clock jacket phone camera bicycle printer blender".split(),
    "zh": "水壶 台灯 椅子 手机 相机 外套 闹钟 书桌".split(),
}
ASK = {
    "en": {
        "refund": ["The {} broke and I want my money back.", "I am not happy with the {}; please refund me."],
        "delivery": ["Where is the {} I ordered?", "My {} has not arrived yet."],
        "repair": ["The {} stopped working, can you fix it?", "My {} makes a strange noise and needs a repair."],
        "exchange": ["The {} is the wrong colour, I would like another one.", "Please swap the {} for a bigger one."],
        "invoice": ["I need the bill for the {}.", "Please send me the invoice for my {}."],
    },
    "zh": {
        "退款": ["{}坏了，请退钱。", "我不要这个{}了，想退款。"],
        "物流": ["我买的{}到哪里了？", "{}还没有送到。"],
        "维修": ["{}不能用了，能修吗？", "{}有怪声，要修一下。"],
        "换货": ["{}颜色不对，想换一个。", "{}太小了，请换大的。"],
    },
}
HURRY = {
    "en": {
        "high": ["This is urgent!", "I need an answer today.", "Please hurry."],
        "low": ["There is no rush.", "Take your time.", "Whenever you can."],
    },
    "zh": {"高": ["很急！", "今天就要。"], "低": ["不着急。", "慢慢来。"]},
}
LINE = {"en": "topic={}; item={}; urgency={}", "zh": "主题={}；商品={}；紧急={}"}


def demo(language: str) -> list[dict[str, str]]:
    """Every message of one language with its answer line."""
    rows = []
    for topic, asks in ASK[language].items():
        for ask, item, (urgency, hurries) in itertools.product(asks, ITEMS[language], HURRY[language].items()):
            for hurry in hurries:
                question = f"{ask.format(item)}{' ' if language == 'en' else ''}{hurry}"
                rows.append({"question": question, "answer": LINE[language].format(topic, item, urgency)})
    return rows


def demo_split(rng: random.Random) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out messages; no message is in both."""
    train: list[dict[str, str]] = []
    heldout: list[dict[str, str]] = []
    for language, (train_rows, heldout_rows) in DEMO_ROWS.items():
        rows = demo(language)
        rng.shuffle(rows)
        heldout += rows[:heldout_rows]
        train += rows[heldout_rows : heldout_rows + train_rows]
    rng.shuffle(train)
    rng.shuffle(heldout)
    return train, heldout


NAMES = {"en": "Mia Tom Anna Ben Lily Max Nora Sam".split(), "zh": "小明 小红 小华 小丽 小刚 小芳".split()}
ANIMALS = {"en": "fox rabbit duck bear kitten frog".split(), "zh": "狐狸 兔子 小鸭 小熊 小猫 青蛙".split()}
THINGS = {"en": "red ball,blue kite,warm hat,big box,sweet apple".split(","), "zh": "红球 风筝 帽子 箱子 苹果".split()}
PLACES = {
    "en": "in the park,by the river,under a tree,near the school,on the hill".split(","),
    "zh": "公园里 河边 树下 学校旁边 山坡上".split(),
}
STORY = {
    "en": [
        "One day, {name} saw a little {animal} {place}. The {animal} had lost a {thing} and was very sad. "
        '"Do not cry," said {name}. "We will look for it together." They looked and looked. At last they found '
        "the {thing}. The {animal} smiled, and the two became good friends.",
        "{name} had a {thing}. Every morning {name} played with it {place}. A {animal} came and asked to play too. "
        "{name} thought for a moment and said yes. Sharing made the game more fun, and they laughed until evening.",
        "It was raining. {name} and a small {animal} sat {place} and waited. {name} took out a {thing}. "
        '"This is for you," said {name}. The {animal} was so happy that it danced in the rain.',
    ],
    "zh": [
        "有一天，{name}在{place}看见一只{animal}。{animal}丢了{thing}，很难过。{name}说：“别哭，我们一起找。”"
        "他们找了很久，终于找到了{thing}。{animal}笑了，他们成了好朋友。",
        "{name}有一个{thing}，每天早上都在{place}玩。一只{animal}走过来，也想一起玩。{name}想了想，说好。"
        "大家一起玩更开心，他们一直笑到太阳下山。",
        "下雨了，{name}和{animal}坐在{place}等雨停。{name}从书包里拿出{thing}，说：“送给你。”{animal}高兴得在雨里跳起舞来。",
    ],
}


def stories(rng: random.Random, language: str, count: int) -> list[str]:
    """Different short stories, one paragraph each."""
    lists = (STORY[language], NAMES[language], ANIMALS[language], THINGS[language], PLACES[language])
    drawn = rng.sample(list(itertools.product(*lists)), count)
    return [s.format(name=n, animal=a, thing=t, place=p) for s, n, a, t, p in drawn]


DIGITS = "零一二三四五六七八九十"
WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "zh": "星期一 星期二 星期三 星期四 星期五 星期六 星期日".split(),
}
OPPOSITES = {
    "en": "big small,hot cold,long short,fast slow,new old,happy sad,light dark,early late,open closed,full empty",
    "zh": "大 小,热 冷,长 短,快 慢,新 旧,高 低,早 晚,多 少,开 关,远 近",
}
COLOURS = {"apple": "red", "banana": "yellow", "grass": "green", "snow": "white", "coal": "black", "sky": "blue"}
COLOURS_ZH = {"苹果": "红色", "香蕉": "黄色", "草": "绿色", "雪": "白色", "煤": "黑色", "天空": "蓝色"}


def facts() -> list[dict[str, str]]:
    """Short questions with one right answer."""
    rows = []
    for a, b in itertools.product(range(1, 10, 2), range(2, 10, 2)):
        rows.append({"question": f"{a}加{b}等于多少？", "answer": f"{a}加{b}等于{a + b}。"})
        rows.append({"question": f"What is {a} plus {b}?", "answer": f"{a} plus {b} is {a + b}."})
    for language, days in WEEKDAYS.items():
        for today, tomorrow in zip(days, days[1:] + days[:1], strict=True):
            if language == "en":
                rows.append(
                    {"question": f"Which day comes after {today}?", "answer": f"{tomorrow} comes after {today}."}
                )
            else:
                rows.append({"question": f"{today}的后一天是星期几？", "answer": f"{today}的后一天是{tomorrow}。"})
    for thing, colour in COLOURS.items():
        rows.append({"question": f"What colour is {thing}?", "answer": f"Usually {colour}."})
    for thing, colour in COLOURS_ZH.items():
        rows.append({"question": f"{thing}一般是什么颜色？", "answer": f"{thing}一般是{colour}。"})
    return rows


KNOWN_ZH = {
    "一周有几天？": "一周有七天。",
    "一年有几个月？": "一年有十二个月。",
    "一天有多少小时？": "一天有二十四小时。",
    "一小时有多少分钟？": "一小时有六十分钟。",
    "中国的首都是哪里？": "中国的首都是北京。",
    "法国的首都是哪里？": "法国的首都是巴黎。",
    "太阳从哪边升起？": "太阳从东边升起。",
    "水结冰以后是什么？": "水结冰以后是冰。",
    "一米有多少厘米？": "一米有一百厘米。",
    "猫有几条腿？": "猫有四条腿。",
}


def heldout_facts() -> list[dict[str, str]]:
    """Questions other than those of `facts`; factual and reasoning questions alternate."""
    asked = [
        (f"{a}加{b}等于多少？", f"{a}加{b}等于{a + b}。") for a, b in itertools.product(range(2, 9, 2), range(1, 8, 3))
    ]
    days = WEEKDAYS["zh"]
    for today, yesterday in zip(days, days[-1:] + days[:-1], strict=True):
        asked.append((f"{today}的前一天是星期几？", f"{today}的前一天是{yesterday}。"))
    factual = [{"question": q, "answer": a, "subset": "factual"} for q, a in KNOWN_ZH.items()]
    reasoning = [{"question": q, "answer": a, "subset": "reasoning"} for q, a in asked]
    turns = itertools.zip_longest(factual, reasoning[::2], reasoning[1::2])
    return [row for turn in turns for row in turn if row]


def prompts() -> list[dict[str, str]]:
    """Prompts with responses: opposites."""
    rows = []
    for left, right in (pair.split() for pair in OPPOSITES["en"].split(",")):
        for a, b in ((left, right), (right, left)):
            rows.append({"prompt": f'Give the opposite of "{a}".', "response": f'The opposite of "{a}" is "{b}".'})
    for left, right in (pair.split() for pair in OPPOSITES["zh"].split(",")):
        for a, b in ((left, right), (right, left)):
            rows.append({"prompt": f"“{a}”的反义词是什么？", "response": f"“{a}”的反义词是“{b}”。"})
    return rows


def instructions(rng: random.Random) -> list[dict[str, str]]:
    """Instructions with inputs, some without."""
    rows = []
    for number in range(11):
        rows.append({"instruction": "把数字写成汉字。", "input": str(number), "output": DIGITS[number]})
    for language in ("en", "zh"):
        for _ in range(15):
            words = rng.sample(ITEMS[language], 3)
            if language == "en":
                task, joined = "Sort these words by the alphabet.", ", ".join(sorted(words))
                rows.append({"instruction": task, "input": " ".join(words), "output": joined})
            else:
                joined = "、".join(reversed(words))
                rows.append({"instruction": "把这些词倒过来排列。", "input": "、".join(words), "output": joined})
    for word in ITEMS["en"]:
        rows.append({"instruction": f'Spell the word "{word}".', "input": "", "output": "-".join(word)})
    return rows


def conversations(rng: random.Random) -> list[dict[str, list[dict[str, str]]]]:
    """Dialogues of two or three turns in ShareGPT's layout."""
    rows = []
    for name, thing, animal in rng.sample(list(itertools.product(*(x["en"] for x in (NAMES, THINGS, ANIMALS)))), 24):
        turns = [
            (f"Hello, my name is {name}.", f"Hello {name}, how can I help you?"),
            (f"I want to give my {animal} a {thing}.", f"What a kind idea! A {thing} is a lovely present."),
            ("What was my name again?", f"Your name is {name}."),
        ]
        rows.append(_sharegpt(turns[: rng.choice((2, 3, 3))]))
    for name, thing, animal in rng.sample(list(itertools.product(*(x["zh"] for x in (NAMES, THINGS, ANIMALS)))), 24):
        turns = [
            (f"你好，我叫{name}。", f"你好，{name}，有什么可以帮你？"),
            (f"我想送给{animal}一个{thing}。", f"真好！{thing}是很好的礼物。"),
            ("我叫什么名字？", f"你叫{name}。"),
        ]
        rows.append(_sharegpt(turns[: rng.choice((2, 3, 3))]))
    return rows


def _sharegpt(turns: Iterable[tuple[str, str]]) -> dict[str, list[dict[str, str]]]:
    said = [[{"from": "human", "value": asked}, {"from": "gpt", "value": answered}] for asked, answered in turns]
    return {"conversations": [message for pair in said for message in pair]}


# Entities by type, and sentence patterns with slots for them.
ENTITIES = {
    "en": {
        "protein": ["NF-kappa B", "IL-2", "CD28", "interleukin 4", "c-Fos"],
        "cell_type": ["T cells", "human monocytes", "B lymphocytes", "macrophages"],
        "DNA": ["IL-2 promoter", "c-myc gene", "kappa B site"],
    },
    "zh": {"protein": ["白 介素 2", "干扰素"], "cell_type": ["T 细胞", "巨噬细胞"], "DNA": ["启动子", "癌 基因"]},
}
FINDINGS = {
    "en": [
        "{protein} binds to the {DNA} in {cell_type} .",
        "Expression of the {DNA} depends on {protein} and {protein} .",
        "We found no {protein} in resting {cell_type} .",
        "In {cell_type} , {protein} was induced within two hours .",
        "These results were seen twice .",
    ],
    "zh": ["{protein} 在 {cell_type} 中 结合 {DNA} 。", "{cell_type} 表达 {protein} 。", "结果 如 下 。"],
}


def tagged(rng: random.Random, language: str, count: int) -> list[list[tuple[str, str]]]:
    """Sentences as (word, IOB2 tag)."""
    sentences = []
    for _ in range(count):
        words: list[tuple[str, str]] = []
        for part in rng.choice(FINDINGS[language]).split():
            kind = part.strip("{}")
            if kind == part:
                words.append((part, "O"))
                continue
            entity = rng.choice(ENTITIES[language][kind]).split()
            words += [(word, f"{'I' if place else 'B'}-{kind}") for place, word in enumerate(entity)]
        sentences.append(words)
    return sentences


def iob2(sentences: Iterable[list[tuple[str, str]]]) -> str:
    """One word and its tag per line, a blank line after each sentence."""
    return "".join("".join(f"{word}\t{tag}\n" for word, tag in words) + "\n" for words in sentences)


NEWS = {
    "positive": [
        "Sales of {} rose by {} percent.",
        "{} doubled its profit to {} million euros.",
        "{}的利润增长了百分之{}。",
    ],
    "negative": ["Sales of {} fell by {} percent.", "{} will cut {} jobs.", "{}的订单减少了百分之{}。"],
    "neutral": ["{} has {} offices.", "The annual meeting of {} begins on day {}.", "{}有{}名员工。"],
}
COMPANIES = ["Northmill", "Alder and Sons", "Bluewater", "南山机械", "东湖食品"]


def sentiments() -> list[dict[str, str]]:
    """Every headline with its sentiment."""
    return [
        {"sentence": text.format(company, number), "label": label}
        for label, texts in NEWS.items()
        for text, company, number in itertools.product(texts, COMPANIES, (3, 12, 40))
    ]


ALIKE = [
    ("{0} opened a shop in {1}.", "In {1}, {0} opened a shop."),
    ("{0} moved to {1} last year.", "Last year {0} went to live in {1}."),
    ("{0} was born in {1}.", "{1} is where {0} was born."),
    ("{0}去年搬到了{1}。", "去年，{0}搬去{1}住了。"),
]


def paraphrases(rng: random.Random) -> list[dict[str, str]]:
    """Pairs of sentences: paraphrases, and near misses."""
    rows = []
    for (one, other), name in itertools.product(ALIKE, ["Ben", "Mia", "Anna", "Tom", "小明"]):
        place, elsewhere = rng.sample(["Lisbon", "Oslo", "Kyoto", "上海"], 2)
        for same in (True, False):
            second = other.format(name, place if same else elsewhere)
            label = "equivalent" if same else "not equivalent"
            rows.append({"sentence1": one.format(name, place), "sentence2": second, "label": label})
    return rows


def preferences() -> list[dict[str, object]]:
    """Two answers to a question; the friendlier one is chosen."""
    kind = ["Of course. {} is easy once you have seen it; let us begin.", "With pleasure! First a word on {}."]
    rude = ["Look up {} yourself.", "{}? I do not care."]
    topics = ["long division", "baking bread", "the tides", "chess openings", "tying knots", "水循环", "二次方程"]
    return [
        {
            "prompt": [{"role": "user", "content": f"Can you explain {topic} to me?"}],
            "chosen": [{"role": "assistant", "content": good.format(topic)}],
            "rejected": [{"role": "assistant", "content": bad.format(topic)}],
        }
        for topic, good, bad in itertools.product(topics, kind, rude)
    ]


PROBLEMS = [
    ("{0} has {1} {3} and buys {2} more. How many {3} does {0} have now?", "{1} + {2} = {4}", int.__add__),
    ("{0} packs {1} boxes with {2} {3} in each. How many {3} are there?", "{1} * {2} = {4}", int.__mul__),
    ("{0} had {1} {3} and gave {2} of them away. How many are left?", "{1} - {2} = {4}", int.__sub__),
]


def problems() -> list[dict[str, str]]:
    """Word problems in the layout of GSM8K: the solution, then the number after `####`."""
    rows = []
    numbers, things = [(8, 3), (12, 5), (25, 4), (40, 10)], "apples pencils stickers coins".split()
    for (asked, way, work), (a, b), thing in itertools.product(PROBLEMS, numbers, things):
        name, result = NAMES["en"][len(rows) % len(NAMES["en"])], work(a, b)
        answer = f"{way.format(name, a, b, thing, result)}\n#### {result}"
        rows.append({"question": asked.format(name, a, b, thing), "answer": answer})
    return rows


def jsonl(rows: Iterable[object]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: list[dict[str, str]]) -> str:
    """CSV with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def shuffled(rng: random.Random, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same rows in another order."""
    return rng.sample(rows, len(rows))


def files() -> dict[str, str]:
    """File name -> content of every file that this script makes in examples/data."""
    train, heldout = demo_split(random.Random(SEED))
    rng = random.Random(SEED + 1)
    tales = stories(rng, "en", 120) + stories(rng, "zh", 80)
    rng.shuffle(tales)
    return {
        "demo_train.jsonl": jsonl(train),
        "demo_heldout.jsonl": jsonl(heldout),
        "corpus.jsonl": jsonl({"text": tale} for tale in tales[:150]),
        "corpus_heldout.jsonl": jsonl({"text": tale} for tale in tales[150:]),
        "corpus.txt": "\n\n".join(tales[150:]) + "\n",
        "qa.jsonl": jsonl(facts()),
        "qa_heldout.jsonl": jsonl(heldout_facts()),
        "pr.csv": table(prompts()),
        "io.json": json.dumps(instructions(rng), ensure_ascii=False, indent=1) + "\n",
        "chat.jsonl": jsonl(conversations(rng)),
        "entities.iob2": iob2(tagged(rng, "en", 90) + tagged(rng, "zh", 30)),
        "news.jsonl": jsonl({"text": row["sentence"]} for row in sentiments()),
        "sentiment.csv": table(shuffled(rng, sentiments())),
        "paraphrase.jsonl": jsonl(shuffled(rng, paraphrases(rng))),
        "preferences.jsonl": jsonl(preferences()),
        "problems.jsonl": jsonl(shuffled(rng, problems())),
    }


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
