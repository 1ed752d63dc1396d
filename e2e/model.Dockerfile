# The demo model as an image, for oci:// sources: files that anybody may read, and `cp` where image volumes are missing.
#   docker build -f e2e/model.Dockerfile -t plimsoll.dev/demo-model:dev .cache/plimsoll
FROM busybox
COPY --chmod=0644 SmolLM2-135M-Instruct.Q4_1.gguf /models/
