# acl_plugin on a CPU. TORCH_INDEX is the index of PyTorch's CPU builds, which pytorch.org/get-started names; without it,
# the image has the CUDA build, which also runs on a CPU and is 5 GB larger.
#   docker build --build-arg TORCH_INDEX=INDEX -t acl-plugin .
#   docker run --rm -v "$PWD/runs:/work/runs" acl-plugin run --out runs/digits
FROM python:3.12-slim
ARG TORCH_INDEX=""
ENV ACL_PLUGIN_HOME=/work/.acl_plugin
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY . /src
RUN pip install --no-cache-dir "/src[robustbench]" && rm -r /src
WORKDIR /work
ENTRYPOINT ["acl-plugin"]
