"""`build.sh`: the same build with trtexec alone, which JetPack has beside TensorRT."""

import shlex
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from onnx_lathe.runtime.targets.jetson.device.command import FALLBACK

SEPARATORS = (",", ":", "'")
"""What trtexec cannot tell from its own marks in a name."""
FLAGS = {
    "SPARSE_WEIGHTS": "--sparsity=enable",
    "REFIT": "--refit",
    "VERSION_COMPATIBLE": "--versionCompatible",
    "EXCLUDE_LEAN_RUNTIME": "--excludeLeanRuntime",
    "WEIGHT_STREAMING": "--allowWeightStreaming",
    FALLBACK: "",  # the script adds it with the core
}
"""BuilderFlag -> what trtexec of TensorRT 10 and 11 calls it."""


def build_script(title: str, request: Mapping[str, Any], log: bool, time_limit_s: float | None) -> str:
    """Text of the script. `request`: what build.py asks of TensorRT."""
    return Template(SCRIPT).substitute(
        title=title,
        flags="".join(f"    {shlex.quote(flag)}\n" for flag in flags(request)),
        impossible=shlex.quote(impossible(request)),
        dla="" if request["dla"] is None else request["dla"],
        quantized=int(request["quantized"]),
        log=int(log),
        limit=0 if time_limit_s is None else max(1, round(time_limit_s)),
    )


def only_profile(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Input of dynamic size -> its least, tuned and greatest shape. A bundle has one profile: trtexec's flags and the
    stored inputs are for one.
    """
    return request["profiles"][0] if request["profiles"] else {}


def flags(request: Mapping[str, Any]) -> list[str]:
    """Of trtexec, for TensorRT 10 and 11 alike."""
    found = []
    profile = only_profile(request)
    if profile and not unnamable(profile):
        for index, kind in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, sizes[index]))}" for name, sizes in profile.items())
            found.append(f"--{kind}Shapes={','.join(shapes)}")
    if request["workspace_bytes"] is not None:
        found.append(f"--memPoolSize=workspace:{request['workspace_bytes'] >> 20}")
    if request["level"] is not None:
        found.append(f"--builderOptimizationLevel={request['level']}")
    return found + [FLAGS[name] for name in request["flags"] if FLAGS.get(name)]


def impossible(request: Mapping[str, Any]) -> str:
    """What build.py can be asked for and trtexec cannot; empty if it can all."""
    if name := unnamable(only_profile(request)):
        return f"the name of input '{name}'"
    return ", ".join(name for name in request["flags"] if name not in FLAGS)


def unnamable(names: Sequence[str] | Mapping[str, Any]) -> str:
    """The first input of dynamic size whose name trtexec cannot be given; empty if there is none."""
    return next(
        (name for name in names if any(mark in name for mark in SEPARATORS) or name.strip() != name), ""
    )


SCRIPT = r"""#!/usr/bin/env bash
# $title
#
#   ./build.sh          checks the files and builds model.engine with trtexec, on the device that will run it
#   ./build.sh --gpu    for the GPU, where the bundle is for DLA
#   ./build.sh --log    keeps all that trtexec says in model.engine.log
#
# TRTEXEC=/path/to/trtexec ./build.sh takes another one. Exit codes: 2 damaged files or wrong use, 4 no TensorRT or a
# failed build, 130 interrupted. The engine appears whole or not at all.
[ -n "$${BASH_VERSION:-}" ] || { echo "build.sh: this shell is not bash; run ./build.sh, or bash build.sh" >&2; exit 2; }
set -euo pipefail
export LC_ALL=C

fail() {
    echo "build.sh: $$2" >&2
    exit "$$1"
}

flags=(
$flags)
dla='$dla'
quantized=$quantized # whether the network has pairs of Q/DQ
log=$log
limit=$limit # seconds; 0: none
impossible=$impossible

for argument in "$$@"; do
    case "$$argument" in
    --gpu) dla='' ;;
    --log) log=1 ;;
    -h | --help)
        sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) fail 2 "there is no option '$$argument'; ./build.sh --help lists them" ;;
    esac
done
trtexec=$${TRTEXEC:-trtexec} # found before the folder changes: it may be a path from here
case "$$trtexec" in
/*) ;;
*/*) trtexec=$$PWD/$$trtexec ;;
*) trtexec=$$(command -v -- "$$trtexec" || echo "/usr/src/tensorrt/bin/$$trtexec") ;;
esac
cd -- "$$(dirname -- "$$(readlink -f -- "$${BASH_SOURCE[0]}")")"

[ -f SHA256SUMS ] || fail 2 "SHA256SUMS is not there; copy the folder again"
for name in bundle.json model.onnx build.py build.sh; do
    grep -q "^[0-9a-f]\{64\}  $$name\$$" SHA256SUMS || fail 2 "SHA256SUMS does not list $$name; copy the folder again"
done
if ! checked=$$(sha256sum --quiet --strict --check SHA256SUMS 2>&1); then
    wrong=$$(sed -n 's/: FAILED.*//p' <<<"$$checked" | paste -sd ' ' -)
    fail 2 "missing or not as written: $${wrong:-SHA256SUMS itself}; copy the folder again"
fi
[ -z "$$impossible" ] || fail 2 "trtexec cannot be given $$impossible; python3 build.py can"

engine=.building-$$$$.engine
said=.building-$$$$.log
sidecar=.building-$$$$.json
child=''
trap 'rm -f -- .writable "$$engine" "$$said" "$$sidecar"' EXIT
interrupted() {
    trap '' INT TERM HUP
    if [ -n "$$child" ]; then
        kill -TERM -- "-$$child" 2>/dev/null || true
        for _ in {1..50}; do
            kill -0 -- "-$$child" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$$child" 2>/dev/null || true
    fi
    echo "build.sh: interrupted; nothing was written" >&2
    exit 130
}
trap interrupted INT TERM HUP

touch .writable 2>/dev/null || fail 2 "$$PWD cannot be written; copy the folder to a disk that can"
rm -f .writable

[ -x "$$trtexec" ] || fail 4 "trtexec is not there ($$trtexec): sudo apt install nvidia-jetpack, or TRTEXEC=/path/to/trtexec ./build.sh; python3 build.py needs only the Python package"

# "[TensorRT v100300]" is 10.3.0, "[TensorRT v8601]" 8.6.1
banner=$$({ "$$trtexec" --help 2>&1 || true; } | sed -n 's/.*\[TensorRT v\([0-9]\{1,\}\)\].*/\1/p' | sed -n 1p)
[ -n "$$banner" ] || fail 4 "$$trtexec does not say its version; does it run here?"
version=$$((banner / 10000)).$$((banner / 100 % 100)).$$((banner % 100))
[ "$$banner" -ge 100300 ] || fail 4 "this TensorRT is too old (v$$banner): the network needs 10.3 (JetPack 6.1) or later"
unsupported=0
[ "$$banner" -lt 110000 ] || [ "$$banner" -ge 110401 ] || unsupported=1
if [ "$$unsupported" = 1 ] && { [ -e /etc/nv_tegra_release ] || grep -qsi jetson /proc/device-tree/model; }; then
    fail 4 "TensorRT $$version does not support Jetson; JetPack 6 has 10.3, JetPack 7.2.2 and later 11.4.1"
fi

if [ -n "$$dla" ]; then
    if [ "$$unsupported" = 1 ] || { [ "$$banner" -ge 100800 ] && [ "$$banner" -lt 110000 ]; }; then
        fail 4 "TensorRT $$version does not build for DLA: 10.3 to 10.7 and 11.4.1 and later do; ./build.sh --gpu"
    fi
    flags+=("--useDLACore=$$dla" --allowGPUFallback)
    # TensorRT 10 builds for DLA in weakly typed networks alone, and there Q/DQ pairs need INT8 allowed
    if [ "$$banner" -lt 110000 ]; then
        flags+=(--fp16)
        [ "$$quantized" = 0 ] || flags+=(--int8)
    fi
elif [ "$$banner" -lt 110000 ]; then
    flags+=(--stronglyTyped) # 11 always is, and may not know the word
fi
[ "$$log" = 0 ] || flags+=(--verbose)

run=("$$trtexec" --onnx=model.onnx "--saveEngine=$$engine" --skipInference "$${flags[@]}")
[ "$$limit" = 0 ] || run=(timeout --foreground --kill-after=2 "$$limit" "$${run[@]}")
began=$$SECONDS
echo "building with TensorRT $$version; this takes minutes"
code=0
# a group of its own, which is waited for: bash acts on a signal at once then, and ends all of it
set -m
"$${run[@]}" >"$$said" 2>&1 </dev/null &
child=$$!
set +m
wait "$$child" 2>/dev/null || code=$$?
child=''
[ "$$log" = 0 ] || cp -- "$$said" model.engine.log
# timeout ends with 137 where its second signal was needed, and so does what runs out of memory
[ "$$code" != 137 ] || [ "$$limit" = 0 ] || [ $$((SECONDS - began)) -lt "$$limit" ] || code=124
[ "$$code" != 137 ] || fail 4 "trtexec was killed, as where memory runs out: end other programs, or add swap"
[ "$$code" != 124 ] || fail 4 "not built within $$limit s, the bundle's time_limit; python3 build.py --time-limit takes another"
if [ "$$code" != 0 ] || [ ! -s "$$engine" ]; then
    reason=$$(grep -a '\[E\]' "$$said" | sed -n 1p | sed 's/^.*\[E\] *//' || true)
    fail 4 "trtexec did not build model.onnx (exit code $$code): $${reason:-it gives no reason}; ./build.sh --log keeps all that it says"
fi
# which network and device the engine is of, as build.py writes it, which compares
files=$$(sed -n 's/^\([0-9a-f]*\)  \(model\.onnx\(\.data\)\{0,1\}\)$$/"\2": "\1"/p' SHA256SUMS | paste -sd ',' -)
size=$$(stat -c %s "$$engine")
sum=$$(sha256sum -- "$$engine")
cat >"$$sidecar" <<EOF
{
 "engine": "model.engine",
 "engine_bytes": $$size,
 "engine_sha256": "$${sum%% *}",
 "model_sha256": {$$files},
 "library": "tensorrt",
 "dla": $${dla:-null},
 "version": "$$version"
}
EOF
trap '' INT TERM HUP # both or none
mv -f -- "$$sidecar" model.engine.json
mv -f -- "$$engine" model.engine
place="the GPU"
[ -z "$$dla" ] || place="DLA core $$dla"
echo "model.engine: $$((size / 1000)) kB, built for $$place; python3 build.py --verify compares it with what was stored"
"""
