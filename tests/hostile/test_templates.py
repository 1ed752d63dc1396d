"""Chat templates that take for ever, or all memory, or fail in every way that Jinja knows: each ends as a refusal."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.preparer import Prepared
from tests.support.preparing import Prepare, preparing

BENIGN = "{% for m in messages %}{{ m.content }}{% endfor %}"
SHOWN = "{{ messages[0].content }}"
WRONG = (
    "{{", "{%", "{% for %}", "{% if %}", "{{ a b }}", "{% endfor %}", "{{ 'a }}", "{#", "{% include 'x' %}",
    "{% import '/etc/passwd' as p %}{{ p }}", "{% extends 'x' %}", "{{ open('/etc/passwd').read() }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ none.x.y }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ raise_exception('no') }}",
    "{{ raise_exception('\x1b]52;c;x\x07' * 9999) }}", "{{ messages[99].content }}", "{{ 'a' + 1 }}", "{{ x.y }}",
    "{{ 'a'|nofilter }}", "{{ 1 is notest }}", "{{ range(10 ** 9)|list }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}", "{{ messages.append(1) }}", "{{ 'a'|int|abs.x }}",
    "{{ cycler.__init__.__globals__ }}", "{{ [1, 2]|map('nothing')|list }}", "{{ '%d'|format('a') }}",
    "{{ strftime_now('%') ~ none.x.y }}", "{{ '{0.__class__}'.format(1) }}{{ none.x.y }}", "{{ {}['a']['b'] }}",
    "{% set messages.x = 1 %}", "{{ 'a'.encode('x') }}", "{{ ('a' * 5000)|int + 'x' }}", "{{ 2 ** -1.5 ** 99999 }}",
    "{{ 1e308 * 10 ** 400 }}", "{{ [] < {} }}", "{{ 'a' * -1 + none }}",
)  # fmt: skip


def endless() -> Iterator[str]:
    """Templates that would run for minutes and more."""
    for depth, count in itertools.product((2, 3), (30_000, 99_999)):
        loop = f"{{% for i in range({count}) %}}"
        yield SHOWN + loop * depth + "{% endfor %}" * depth
    yield SHOWN + "{{ 9 ** (9 ** 9) }}"
    yield SHOWN + "{{ 10 ** (10 ** 8) % 7 }}"


def greedy() -> Iterator[str]:
    """Templates that would take gigabytes."""
    for power in (9, 12):
        for one in ("'a'", "[0]", "'é'", "('ab',)", "messages"):
            yield SHOWN + f"{{{{ ({one} * 10 ** {power})|length }}}}"
        yield SHOWN + f"{{{{ 'a'|center(10 ** {power}) }}}}"
        yield SHOWN + f"{{{{ ('%' ~ 10 ** {power} ~ 's')|format('a') }}}}"
        yield SHOWN + f"{{{{ 'a\\nb'|indent(10 ** {power}) }}}}"
        yield SHOWN + f"{{{{ '{{:{10**power}}}'.format(1) }}}}"
        yield SHOWN + f"{{{{ 'a'.ljust(10 ** {power}) }}}}"
    doubled = "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
    yield SHOWN + doubled + "{{ ns.s }}"
    yield SHOWN + "{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
    yield SHOWN + "{% for i in range(99999) %}" + "a" * 2000 + "{% endfor %}"


def failing() -> Iterator[str]:
    """Templates that are wrong, or raise."""
    for wrong in WRONG:
        yield SHOWN + wrong
        yield wrong
    for opened, closed in (("(", ")"), ("[", "]"), ("{% if 1 %}", "{% endif %}"), ("not ", "")):
        for depth in (300, 3000):
            inside = opened * depth + "1" + closed * depth
            yield SHOWN + (inside if "%" in opened else "{{ " + inside + " }}") + "{{ none.x.y }}"


def names(prefix: str, made: Iterator[str]) -> dict[str, str]:
    return {f"{prefix}-{number}": source for number, source in enumerate(made)}


ENDLESS, GREEDY, FAILING = names("endless", endless()), names("greedy", greedy()), names("failing", failing())


@pytest.fixture(scope="module")
def patient(tokenizer_folder: Path) -> Iterator[Prepare]:
    with preparing(tokenizer_folder, templates={"default": BENIGN} | GREEDY | FAILING) as found:
        yield found


def refused(answer: Prepared | ApiError, name: str) -> ApiError:
    assert isinstance(answer, ApiError), name
    assert answer.status == 400, (name, answer.message)
    assert answer.param in ("messages", "chat_template"), (name, answer.message)
    assert 0 < len(answer.message) < 1000, name
    assert "Traceback" not in answer.message, name
    return answer


def test_a_template_that_takes_for_ever_is_ended_and_the_next_request_runs(tokenizer_folder: Path) -> None:
    with preparing(tokenizer_folder, 0.3, {"default": BENIGN} | ENDLESS) as prepare:
        for name in ENDLESS:
            # However busy the machine is, one of these begins to render before it is ended.
            answers = (prepare.chat(chat_template=name) for _ in range(50))
            error = refused(next(one for one in answers if getattr(one, "param", name) is not None), name)
            assert (error.param, error.code) == ("chat_template", "too_expensive")
            assert "--chat-template" in error.message
        assert any(isinstance(prepare.chat(), Prepared) for _ in range(50))


def test_a_template_that_takes_all_memory_is_refused(patient: Prepare) -> None:
    for name in GREEDY:
        error = refused(patient.chat(chat_template=name), name)
        assert error.code in ("too_expensive", "context_length_exceeded", "invalid_value"), error.message
    assert isinstance(patient.chat(), Prepared)


def test_a_template_that_fails_in_any_way_is_refused(patient: Prepare) -> None:
    passed = [name for name in FAILING if isinstance(patient.chat(chat_template=name), Prepared)]
    for name in FAILING.keys() - passed:
        refused(patient.chat(chat_template=name), name)
    # Some raise nothing: Jinja prints nothing for what is not defined.
    assert len(passed) < len(FAILING) // 4, [FAILING[name] for name in passed]
    assert isinstance(patient.chat(), Prepared)
