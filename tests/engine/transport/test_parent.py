"""An engine process never outlives what started it, however that ends."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.checkpoints import make_checkpoint

SECONDS = 60
"""Far longer than anything here takes."""

PARENT = """
import asyncio, time
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.transport.client import EngineClient
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.messages import EngineRequest

async def main():
    client = EngineClient(EngineConfig(model={model!r}, kv_cache_bytes=1 << 20, threads=1))
    await client.start()
    await client.wait_ready({seconds})
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    while True:
        request = EngineRequest(request_id="r", prompt_token_ids=[1], params=params, arrival=time.monotonic())
        async for _ in client.generate(request):
            print(client.pid, client._running._binding.handover.folder, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_the_engine_does_not_outlive_its_parent(tmp_path: Path, stopped: bool) -> None:
    model = make_checkpoint(tmp_path / "tiny", tokenizer=False)
    script = PARENT.format(model=str(model), seconds=SECONDS)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        engine = psutil.Process(int(pid))
        if stopped:
            engine.suspend()
        parent.kill()
        try:
            engine.wait(SECONDS)
        finally:
            if engine.is_running():
                engine.kill()
    assert not Path(folder).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    code = "from plimsoll.runtime.machine.parent import die_with_parent; die_with_parent(2**22 + 1); print('on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (1, "")
