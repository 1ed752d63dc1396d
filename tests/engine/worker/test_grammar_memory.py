"""What grammars take of an engine's memory: never more than the budget counts for them."""

import subprocess
import sys

import pytest

from plimsoll.api.sizes import GRAMMAR_BYTES, MATCHER_BYTES, TRIE_BYTES, grammar_bytes

RUNNING = 16
#: As an engine's process does it: the vocabulary arrives, each of many requests has a grammar, and takes a token.
MEASURED = """
import ctypes, gc, sys
import msgspec
from plimsoll.runtime.engine.core.thought import Spelling
from plimsoll.runtime.engine.worker.grammars import Grammars
from plimsoll.runtime.machine.heap import steady_heap
from plimsoll.runtime.messages import Vocabulary
from tests.support.vocabularies import made_up_vocabulary

def resident(what):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

size, running = int(sys.argv[1]), int(sys.argv[2])
message = msgspec.msgpack.encode(made_up_vocabulary(size))
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
steady_heap()
# From here on the peak counts.
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
vocabulary = msgspec.msgpack.decode(message, type=Vocabulary)
spelling = Spelling(vocabulary)
grammars = Grammars(vocabulary, size, (2,))
schema = '{"grammars": [{"json_schema": {"type": "array", "items": {"type": "string", "maxLength": 40}}}]}'
constraints = [grammars._compile(schema, False) for _ in range(running)]
for constraint in constraints:
    assert constraint.take(ord("[")), constraint.error
    constraint.compute()
    constraint.mask()
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads a peak that Linux alone starts again")
@pytest.mark.parametrize("size", [49_152, 151_936])
def test_grammars_take_no_more_than_the_budget_counts(size: int) -> None:
    command = [sys.executable, "-c", MEASURED, str(size), str(RUNNING)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    measured = int(found.stdout)
    assert 0.6 * grammar_bytes(size, RUNNING) < measured <= grammar_bytes(size, RUNNING)


def test_a_running_request_has_a_place_in_its_grammar_and_two_masks() -> None:
    assert grammar_bytes(151_936, 0) == GRAMMAR_BYTES + 151_936 * TRIE_BYTES
    assert grammar_bytes(33, 2) - grammar_bytes(33, 1) == MATCHER_BYTES + 2 * 8
