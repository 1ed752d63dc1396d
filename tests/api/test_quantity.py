"""Quantities and durations: as Kubernetes reads them, to the byte."""

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.errors import SpecError
from plimsoll.api.quantity import byte_option, format_bytes, parse_bytes, parse_cpus, parse_quantity, parse_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24Gi", 24 << 30), ("1.5Gi", 3 << 29), ("512Mi", 512 << 20), ("3Ki", 3072), ("1Ti", 1 << 40), ("1Pi", 1 << 50),
        ("7Ei", 7 << 60), ("1k", 1000), ("2M", 2_000_000), ("16G", 16 * 10**9), ("1T", 10**12), ("2P", 2 * 10**15),
        ("1E", 10**18), ("1e9", 10**9), ("1.5E3", 1500), ("12e-1", 2), ("100m", 1), ("1500m", 2), (4096, 4096),
        (0.5, 1), (".5Ki", 512), ("5.Mi", 5 << 20), ("+1Ki", 1024), (" 1Gi ", 1 << 30),
    ],
)  # fmt: skip
def test_memory_is_read_as_kubernetes_reads_it(text: str | int | float, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text", ["", "Gi", "24GiB", "24gi", "1 Gi", "1KI", "0x10", "1_000", "--1", "1e999", "9Ei", "nan", "inf", "1Gi\n2",
             "-1Gi", "0", True, None, [], float("nan"), float("inf"), "9" * 5000, "١Gi"],
)  # fmt: skip
def test_what_is_no_memory_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"must be|is larger"):
        parse_bytes(text)  # type: ignore[arg-type]


@given(st.integers(1, (1 << 63) - 1))
def test_whole_bytes_are_exact(count: int) -> None:
    assert parse_bytes(str(count)) == parse_bytes(count) == count


@given(st.integers(1, 10**6), st.sampled_from(["m", "", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_a_quantity_is_its_number_times_its_unit(number: int, unit: str) -> None:
    scale = {"m": Decimal("0.001"), "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    assert parse_quantity(f"{number}{unit}") == number * scale[unit]


@given(st.text(max_size=30) | st.integers() | st.floats())
def test_no_input_breaks_the_parsers(value: str | int | float) -> None:
    for parse in (parse_quantity, parse_bytes, parse_cpus, parse_seconds):
        with contextlib.suppress(ValueError):
            assert parse(value) >= 0 or parse is parse_quantity


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120s", 120), ("2m", 120), ("1h30m", 5400), ("1h1m1s", 3661), ("0.5s", 0.5), ("0s", 0), (90, 90), (1.5, 1.5)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5", "1m1h", "-1s", "1d", -1, float("nan"), True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_seconds(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "threads"), [("500m", 1), ("1500m", 2), (4, 4), ("4", 4)])
def test_processors_become_whole_threads(text: str | int, threads: int) -> None:
    assert parse_cpus(text) == threads


def test_people_read_binary_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 15 << 30, 3 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "15.0 GiB", "3.0 TiB",
    ]  # fmt: skip


def test_an_option_takes_the_spelling_of_people_and_names_itself() -> None:
    assert byte_option("24GiB", "--memory") == byte_option("24Gi", "--memory") == 24 << 30
    with pytest.raises(SpecError, match=r"--memory: .*'lots'"):
        byte_option("lots", "--memory")
