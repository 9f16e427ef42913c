"""Broken and odd input for readers: real texts and files with a few seeded changes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from conr_ray.errors import UserError

T = TypeVar("T")

# What YAML, Python and pydantic have trouble with, or take for something else.
WORDS = (
    *("null", "~", "true", "False", "yes", "off", "1e-3", "1e5", "0o17", "0x1F", "010", "1_000"),
    *(".inf", "-.INF", ".nan", "nan", "inf", "1e999", "-1e-999", "5e-324", "1.8e308", "-0.0", "."),
    *(
        "9007199254740993",
        "1" * 99,
        "9" * 5000,
        "0x" + "f" * 5000,
        "1e" + "9" * 400,
        "0." + "1" * 999,
    ),
    *("2024-13-45", "12:30:45", "$preset", "never", "neighborhood.k1", "optim", "schedule.epochs"),
    *(
        "[]",
        "{}",
        "[[]]",
        "[1, 2]",
        "[0.5, 1.0]",
        "[null]",
        "{a: 1}",
        "{1: 2}",
        "{[1]: 2}",
        "{? 1}",
    ),
    *(
        "[" * 30,
        "[" * 500 + "]" * 500,
        "{a: " * 100,
        "- " * 300,
        "? " * 50,
        "[" + "1," * 3000 + "1]",
    ),
    *("!!int 3", "!!python/object:os.system x", "!x", "&a 1", "*a", "*b", "<<: *a", "&a [*a]"),
    *(
        "'",
        '"',
        "|",
        ">",
        "|\n  x",
        "%YAML 1.1",
        "---",
        "...",
        "#",
        " #x",
        ":",
        ",",
        "]",
        "}",
        "\t",
    ),
    *(
        "\0",
        "\x07",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\udcff",
        "é",
        "名",
        "🙂",
        "\r\n",
    ),
    *(
        "$\\LaTeX$",
        "x" * 3000,
        "'" + "y" * 3000 + "'",
        "a: &b " * 9,
        "\\",
        "@",
        "`",
        "{",
        "=",
        "1e",
    ),
)
_BOMB = "\n".join(
    ["&l0 [x, x, x, x, x, x, x, x]"]
    + [f"&l{i} [{', '.join([f'*l{i - 1}'] * 8)}]" for i in range(1, 12)]
)
BOMB = "bomb:\n" + "\n".join(f"- {line}" for line in _BOMB.split("\n")) + "\n"
_LONGEST_MESSAGE = 700
_MOST_TIME_S = 1.0


def changed(text: str, random: Random) -> str:
    """`text` with one to three changes: words swapped, lines moved, characters cut."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        text = random.choice(_CHANGES)(text, random)
    return text


def _swap_word(text: str, random: Random) -> str:
    """Another value for a key, or another item in a list."""
    places = [i for i, c in enumerate(text) if c in ":,[{-" and text[i + 1 : i + 2] != "\n"]
    if not places:
        return text + random.choice(WORDS)
    start = random.choice(places) + 1
    end = next((i for i in range(start, len(text)) if text[i] in ",]}\n"), len(text))
    return f"{text[:start]} {random.choice(WORDS)}{text[end:]}"


def _swap_key(text: str, random: Random) -> str:
    words = [word for word in text.replace("{", " ").split() if word.endswith(":")]
    if not words:
        return text
    return text.replace(random.choice(words), random.choice([*words, *WORDS]) + ":", 1)


def _insert(text: str, random: Random) -> str:
    place = random.randint(0, len(text))
    return text[:place] + random.choice(WORDS) + text[place:]


def _cut(text: str, random: Random) -> str:
    start = random.randint(0, len(text))
    return text[:start] + text[start + random.randint(1, 12) :]


def _repeat_line(text: str, random: Random) -> str:
    lines = text.split("\n")
    lines.insert(random.randint(0, len(lines)), random.choice(lines))
    return "\n".join(lines)


def _bend_line(text: str, random: Random) -> str:
    """Another indentation."""
    lines = text.split("\n")
    place = random.randrange(len(lines))
    lines[place] = random.choice(("", " ", "  ", "\t")) + random.choice((str.strip, str))(
        lines[place]
    )
    return "\n".join(lines)


def _put_bomb(text: str, random: Random) -> str:
    return random.choice((BOMB + text, text + "\n" + BOMB, text.replace("\n", "\n" + BOMB, 1)))


_CHANGES: Sequence[Callable[[str, Random], str]] = (
    *(_swap_word,) * 6,
    *(_swap_key,) * 2,
    *(_insert, _cut, _repeat_line, _bend_line),
    _put_bomb,
)


# Numbers that sizes, offsets and counts in files are wrong with.
_ODD_BYTES = (
    *(bytes(n) for n in (1, 2, 4, 8)),
    *(b"\xff" * n for n in (1, 2, 4, 8)),
    *(b"\x7f" + b"\xff" * n for n in (1, 3)),
    *(b"\xff" * n + b"\x7f" for n in (1, 3, 7)),
    *(b"\x00\x00\x00\x01", b"\x01\x00\x00\x00", b"\x80", b"\x80\x00\x00\x00", b"\x00\x00\x00\x80"),
)


def changed_bytes(data: bytes, random: Random) -> bytes:
    """`data` with one to four changes: bits flipped, numbers put in, parts cut, moved, repeated."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_BYTE_CHANGES)(data, random)
    return data


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return b"\x01"
    # Sizes and kinds are at the begin and, in Parquet and archives, at the end.
    reach = random.choice((16, 64, len(data)))
    place = random.randrange(min(reach, len(data)))
    if random.random() < 0.3:
        place = len(data) - 1 - place
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def _put(data: bytes, random: Random) -> bytes:
    odd, place = random.choice(_ODD_BYTES), random.randint(0, len(data))
    return data[:place] + odd + data[place + random.choice((len(odd), len(odd), 0)) :]


def _cut_off(data: bytes, random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _cut_out(data: bytes, random: Random) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + data[place + random.choice((1, 2, 7, 60)) :]


def _move(data: bytes, random: Random) -> bytes:
    first, second = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    return random.choice(
        (data[second:] + data[first:second] + data[:first], data + data[first:second])
    )


_BYTE_CHANGES: Sequence[Callable[[bytes, Random], bytes]] = (
    *(_flip,) * 4,
    *(_put,) * 3,
    *(_cut_off, _cut_out, _move),
)


def survive(read: Callable[[T], Any], given: T) -> str | None:
    """The message with which `read` refuses what is given, None if it takes it.

    Fails if it raises anything else, tells more than a few lines, or takes over a second.
    """
    # Of this process alone: others may keep the machine busy.
    begun_s = time.process_time()
    try:
        read(given)
        message = None
    except UserError as error:
        message = str(error)
        assert message.isprintable() and len(message) <= _LONGEST_MESSAGE, (given, message)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}: {given!r}"[:3000]) from error
    taken_s = time.process_time() - begun_s
    assert taken_s < _MOST_TIME_S, f"{taken_s:.1f} s: {given!r}"[:3000]
    return message


def survive_all(
    read: Callable[[T], Any],
    examples: Sequence[T],
    seed: int,
    count: int,
    change: Callable[[T, Random], T],
    most_growth_mib: int = 300,
) -> tuple[int, int]:
    """`survive` for seeded changes of `examples`; how many were taken and refused.

    Fails if the process's memory grows.
    """
    random, refused = Random(seed), 0
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        refused += survive(read, change(random.choice(examples), random)) is not None
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
        assert grown_mib < most_growth_mib, f"{grown_mib:.0f} MiB"
    return count - refused, refused
