from jobs.command import usage

FLAGS = ["--help", "--data", "--model.hidden-size", "--train.batch-size", "--train.epochs", "--resources.batch-size"]


def test_an_unknown_word_is_answered_with_its_likes_or_with_all() -> None:
    assert usage.unknown("verb", "trian", ["demo", "train"]) == "unknown verb 'trian': did you mean train?"
    assert usage.unknown("verb", "xyz", ["demo", "train"]) == "unknown verb 'xyz': use demo, train"
    for word, meant in (
        ("--epocs", "--train.epochs"),
        ("--train.epoch", "--train.epochs"),
        ("--hidden_size", "--model.hidden-size"),
        ("--batch-size", "--train.batch-size"),
        ("--resource.batch-size", "--resources.batch-size"),
    ):
        assert usage.unknown("option", word, FLAGS, "see x") == (
            f"unknown option '{word}': did you mean {meant}? Otherwise see x"
        )
    assert usage.unknown("option", "--colour", FLAGS, "see x") == "unknown option '--colour': see x"


def test_flags_are_those_that_a_help_page_lists() -> None:
    page = """usage: hybrid x [-h] [OPTIONS]

╭─ options ─────────────────────────────╮ ╭─ train options ───────────────────╮
│ -h, --help     show `--this` message  │ │ --train.epochs INT  With --that x │
│ --data STR     Where (default: --no)  │ │ --train.fast, --train.no-fast     │
╰───────────────────────────────────────╯ ╰───────────────────────────────────╯
  --plain INT           Where no frames can be drawn
"""
    assert usage.flags(page) == ["--help", "--train.epochs", "--data", "--train.fast", "--plain"]


def test_a_strangers_words_stay_what_they_are() -> None:
    box = "╭─ Unrecognized options ─╮\n│ Unrecognized options: `x`, --│y │\n│ For full helptext, run hybrid x --help │"
    assert usage.refusal(box, "hybrid x", []) == "unknown option '--y': see `hybrid x --help`"
