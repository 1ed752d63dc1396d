"""What lies on disk: Hugging Face folders, GGUF files, and the sources they come from. Knows neither torch modules nor Kubernetes."""
