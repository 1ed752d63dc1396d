"""One model, many requests: the engine, its kernels and architectures, and the OpenAI-compatible server."""
