"""An engine process never outlives whoever started it, however that ends."""

import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.checkpoints import make_checkpoint

SECONDS = 60
"""Far longer than anything here takes."""


def test_the_engine_does_not_outlive_its_parent(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "tiny", tokenizer=False)
    script = tmp_path / "parent.py"
    script.write_text(
        f"""
import asyncio, time
from plimsoll.runtime.config import EngineConfig
from plimsoll.runtime.engine.client import EngineClient
from plimsoll.runtime.messages import EngineRequest, SamplingParams

async def main():
    client = EngineClient(EngineConfig(model={str(model)!r}, kv_cache_bytes=1 << 20, threads=1))
    await client.start()
    await client.wait_ready({SECONDS})
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    while True:
        request = EngineRequest(request_id="r", prompt_token_ids=[1], params=params, arrival=time.monotonic())
        async for _ in client.generate(request):
            print(client.pid, client._running._binding.handover.folder, flush=True)

asyncio.run(main())
"""
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        engine = psutil.Process(int(pid))
        assert Path(folder).is_dir()
        parent.kill()
        engine.wait(SECONDS)
    assert not engine.is_running()
    assert not Path(folder).exists()
