"""A Service as kube-proxy makes one: TCP, a backend for each new connection, old connections left where they are."""

import asyncio
import contextlib


class Balancer:
    """Give it ports; connections go to them in turn. What leaves `ports` gets no new connection."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = list(ports)
        self.taken = dict.fromkeys(ports, 0)
        self._server: asyncio.Server | None = None
        self._turn = 0
        self._piping: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Balancer":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._piping:
            task.cancel()
        await asyncio.gather(*self._piping, return_exceptions=True)

    def add(self, port: int) -> None:
        self.taken.setdefault(port, 0)
        self.ports.append(port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._piping.add(task)
        try:
            self._turn += 1
            port = self.ports[self._turn % len(self.ports)]
            self.taken[port] += 1
            try:
                backend_reader, backend_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                # As a kernel does for a port where nobody listens.
                writer.transport.abort()
                return
            there = asyncio.create_task(_pipe(reader, backend_writer))
            back = asyncio.create_task(_pipe(backend_reader, writer))
            try:
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                if not back.done():
                    # The client may close its half and still read.
                    await back
            finally:
                for pipe in (there, back):
                    pipe.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
                for end in (writer, backend_writer):
                    end.close()
        finally:
            self._piping.discard(task)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
