"""What a deploy folder brings along for a Jetson: a script that builds TensorRT engines, and a Dockerfile.

Nothing here was run on a Jetson; what was run where stands in docs/deploy.md. Estimates are `vla.deploy.plan`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from vla.deploy.graphs import Graph

__all__ = ["DOCKER_FILE", "ENGINES_FILE", "dockerfile", "engines_script"]

ENGINES_FILE = "build_engines.sh"
DOCKER_FILE = "Dockerfile"

_SCRIPT = """#!/usr/bin/env bash
# Builds TensorRT engines of this folder's graphs with trtexec. Run it on the chip that the engines are for.
# Usage: build_engines.sh thor|orin [fp32|fp16|bf16|int8|fp8]     MAX_BATCH=1 TRTEXEC=trtexec WORKSPACE_MIB=4096
# Not run on a Jetson by whoever wrote it: compare the engines' answers with ONNX Runtime's before a robot moves.
set -euo pipefail
cd "$(dirname "$0")"
chip="${{1:-}}" precision="${{2:-{default}}}"
made="{precision}"  # what the graphs hold
trtexec="${{TRTEXEC:-trtexec}}" batch="${{MAX_BATCH:-1}}" workspace="${{WORKSPACE_MIB:-4096}}"
refuse() {{ echo "build_engines.sh: $1" >&2; exit 2; }}
whole="^[1-9][0-9]*$"
[[ "$batch" =~ $whole && "$workspace" =~ $whole ]] || refuse "MAX_BATCH and WORKSPACE_MIB are whole numbers"
case "$chip" in
  orin) [[ "$precision" != fp8 ]] || refuse "Orin (Ampere, compute 8.7) has no fp8; take fp16 or int8" ;;
  thor) ;;
  *) refuse "say for which chip: thor or orin" ;;
esac
case "$precision" in
  fp32) flags=() ;;
  fp16) flags=(--fp16) ;;
  bf16) flags=(--bf16) ;;
  int8 | fp8)
    [[ "$made" == "$precision" ]] || refuse "these graphs are $made; export with --precision $precision --calibration"
    flags=(--stronglyTyped) ;;
  *) refuse "the precision '$precision' is none of fp32, fp16, bf16, int8, fp8" ;;
esac
[[ "$made" == fp32 || "$made" == "$precision" ]] || refuse "these graphs are $made; export in fp32 to build $precision"
command -v "$trtexec" > /dev/null || refuse "no '$trtexec'; on JetPack it is /usr/src/tensorrt/bin/trtexec"
mkdir -p "engines/$chip"
build() {{
  local name="$1"; shift
  echo "building $name for $chip in $precision"
  "$trtexec" --onnx="$name.onnx" --saveEngine="engines/$chip/$name.$precision.engine" \\
    --timingCacheFile="engines/$chip/timing.cache" --memPoolSize="workspace:$workspace" \\
    --skipInference "${{flags[@]}}" "$@"
}}
{builds}
"""

_DOCKER = """# The policy server on a CPU, without torch. Put a wheel of latent-pyramid into this folder, then:
#   docker build -t policy .
#   docker run -p 5555:5555 -v "$PWD/token:/run/secrets/token:ro" policy
# On a Jetson take NVIDIA's image of its JetPack as the base and its onnxruntime-gpu wheel. This file was not built by
# whoever wrote it.
FROM python:3.11-slim
RUN pip install --no-cache-dir numpy onnxruntime tokenizers pillow pyzmq msgpack
COPY latent_pyramid-*.whl /tmp/
RUN pip install --no-cache-dir --no-deps /tmp/latent_pyramid-*.whl && useradd --create-home policy
COPY policy.json tokenizer.json parity.json build_engines.sh Dockerfile {graphs} /policy/
USER policy
EXPOSE 5555 5556
CMD ["python", "-c", "from vla.deploy.serve import serve; serve('/policy', host='*', token_file='/run/secrets/token')"]
"""


def engines_script(graphs: Sequence[Graph], *, precision: str, max_text_tokens: int) -> str:
    """Returns the text of build_engines.sh, with an optimisation profile for every open size.

    Args:
        graphs: what was exported.
        precision: bits that the graphs hold.
        max_text_tokens: longest text, where its length is open.
    """
    builds = "\n".join(f"build {graph.name}{_profile(graph, max_text_tokens)}" for graph in graphs)
    default = precision if precision != "fp32" else "fp16"
    return _SCRIPT.format(builds=builds, precision=precision, default=default)


def dockerfile(names: Sequence[str]) -> str:
    """Returns the text of a Dockerfile that serves the folder; `names`: files of the graphs."""
    return _DOCKER.format(graphs=" ".join(names))


def _profile(graph: Graph, max_text: int) -> str:
    """Returns the profile's flags; a fixed graph needs none."""
    if not any(graph.axes):
        return ""
    flags = []
    for flag, end in (("minShapes", 0), ("optShapes", 1), ("maxShapes", 2)):
        shapes = [
            f"{name}:{_shape(tensor.shape, axes, graph, (end, max_text))}"
            for name, tensor, axes in zip(graph.inputs, graph.example, graph.axes, strict=True)
        ]
        flags.append(f'--{flag}="{",".join(shapes)}"')
    return " " + " ".join(flags)


def _shape(shape: Sequence[int], axes: dict[int, str], graph: Graph, bounds: tuple[int, int]) -> str:
    """Spells a shape at one end of the profile: smallest, usual, largest."""
    end, max_text = bounds
    sizes = [str(size) for size in shape]
    for axis, name in axes.items():
        if name == "batch":
            sizes[axis] = "1" if end < 2 else "${batch}"
        else:
            # Views come before the text, so a context has that many more tokens than the text.
            views = int(shape[axis]) - graph.text_tokens if name == "length" else 0
            sizes[axis] = str(views + (1 if end == 0 else max_text))
    return "x".join(sizes)
