from jobs.command.errors import EndedError


def test_an_ending_has_a_code_a_message_and_perhaps_a_summary() -> None:
    plain, told = EndedError(3, "refused"), EndedError(1, "failed", {"rows": 2})
    assert (plain.code, str(plain), plain.summary) == (3, "refused", None)
    assert (told.code, str(told), told.summary) == (1, "failed", {"rows": 2})
