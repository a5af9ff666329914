#!/usr/bin/env bash
# The default tier under other processors' arithmetic, thread counts, PyTorch and Python: one factor at a time from the
# default, and three corners. A test that holds here alone rests on how this machine rounds.
#
#   tests/any_machine.sh [--venvs DIR] [--table FILE] [--training] [SETTING ...] [-- PYTEST ARGUMENT ...]
#
#   tests/any_machine.sh                                        everything: about eleven times `make test`
#   tests/any_machine.sh plain threads_2 -- tests/faults -x      two settings, one folder of tests
#   tests/any_machine.sh --training torch_oldest                 the part that trains
#
# Each setting adds a line to FILE (any_machine.tsv in DIR) and leaves its output in DIR (.any_machine). What fails is
# repeated once by itself: "failed" counts what fails both times, the note names the rest as unstable. DIR also holds
# the virtual environments for other versions, made by pip on first use; NEWER_PYTHON=... names an interpreter for them.
set -euo pipefail
cd "$(dirname "$0")/.."

# Two threads in each of two workers on two cores: one that waits sleeps, since one that spins takes the others' time.
# name, environment (project, oldest: the oldest PyTorch that pyproject.toml admits, newer: a newer Python), variables
SETTINGS="
default        project
aten_default   project ATEN_CPU_CAPABILITY=default
aten_avx2      project ATEN_CPU_CAPABILITY=avx2
aten_avx512    project ATEN_CPU_CAPABILITY=avx512
onednn_sse41   project ONEDNN_MAX_CPU_ISA=SSE41
onednn_avx2    project ONEDNN_MAX_CPU_ISA=AVX2
threads_2      project OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
torch_oldest   oldest
python_newer   newer
plain          project ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
corner_low     newer   ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
corner_oldest  oldest  ATEN_CPU_CAPABILITY=avx512 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
"

# The part whose outcomes a training run decides; a few minutes for each setting, and what .ci/run repeats.
TRAINING="tests/faults tests/pilot tests/train/test_ema.py tests/train/test_precision.py
tests/recipes/test_landscape_train.py tests/recipes/test_escape_saddle.py tests/optim/saddle"

folder=.any_machine table= wanted=() tests=() arguments=(-n auto --dist worksteal)
while (($#)); do
    case $1 in
        --venvs) folder=$2; shift ;;
        --table) table=$2; shift ;;
        --training) read -r -d '' -a tests <<<"$TRAINING" || true ;;
        --) shift; arguments=("$@"); break ;;
        -*) sed -n '2,13p' "$0"; exit 2 ;;
        *) wanted+=("$1") ;;
    esac
    shift
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
table=${table:-$folder/any_machine.tsv}
known=$(awk 'NF { print $1 }' <<<"$SETTINGS")
((${#wanted[@]})) || read -r -d '' -a wanted <<<"$known" || true
for name in "${wanted[@]}"; do
    grep -qx -- "$name" <<<"$known" || { echo "unknown setting '$name'; there are:" $known >&2; exit 2; }
done

# Words that say why a setting cannot be tried here; nothing where it can.
missing() {
    local flags
    flags=$(cat /proc/cpuinfo 2>/dev/null || sysctl -a 2>/dev/null | grep -i machdep.cpu || true)
    case $* in
        *avx512*) grep -qi avx512dq <<<"$flags" || echo "this processor has no AVX-512" ;;
        *avx2* | *AVX2*) grep -qi avx2 <<<"$flags" || echo "this processor has no AVX2" ;;
        *SSE41*) grep -qi 'sse4[._]1' <<<"$flags" || echo "this processor has no SSE 4.1" ;;
    esac
}

# The tests that an output says have failed.
names() { sed -nE 's/^(FAILED|ERROR) ([^ ]+\.py(::.*)?)( - .*)?$/\2/p' "$1" | sed 's/ - .*//' | head -n 20 | paste -sd ';'; }

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# The first of some interpreters that runs; a version manager may have a name for one that is not chosen.
first() { for name in "$@"; do "$name" -c '' 2>/dev/null && command -v "$name" && return; done; true; }

# Prints the interpreter of an environment, made where it is missing; or "-" and why there can be none.
interpreter() {
    local home=$folder/$1 python oldest
    [[ -x .venv/bin/python && -f .venv/test.stamp ]] || make .venv/test.stamp >&2
    case $1 in
        project) echo "$PWD/.venv/bin/python"; return ;;
        oldest)
            oldest=$(sed -n 's/^ *"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
            python=$(first python3.11 python3.12 python3.13)
            [[ -n $python ]] || { echo "- no Python 3.11 to 3.13, which PyTorch $oldest needs"; return; } ;;
        newer)
            python=$(first ${NEWER_PYTHON:-python3.14 python3.13})
            case $(version .venv/bin/python) in 3.11 | 3.12) ;; *) python= ;; esac
            [[ -n $python ]] || { echo "- no Python 3.13 or newer beside the project's $(version .venv/bin/python)"; return; } ;;
    esac
    if [[ ! -f $home/.stamp || pyproject.toml -nt $home/.stamp ]]; then
        [[ -x $home/bin/python ]] || "$python" -m venv "$home"
        [[ $1 == newer ]] || sed -nE 's/^ *"(torch|torchvision)>=([0-9.]+)".*/\1==\2.*/p' pyproject.toml \
            >"$home/constraints.txt"
        touch "$home/constraints.txt"
        "$home/bin/python" - >"$home/test.txt" <<'P'
import tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["test"]))
P
        "$home/bin/pip" install --quiet --disable-pip-version-check -c "$home/constraints.txt" -r "$home/test.txt" \
            -e '.[recipes]' >&2 || { echo "- pip could not make $home; its words are above"; return; }
        touch "$home/.stamp"
    fi
    echo "$home/bin/python"
}

[[ -s $table ]] || printf 'setting\tpassed\tfailed\tskipped\tseconds\tpython\ttorch\tkernels\tthreads\tnote\n' >"$table"
bad=0
for name in "${wanted[@]}"; do
    read -r _ place variables <<<"$(awk -v name="$name" '$1 == name' <<<"$SETTINGS")"
    python=- why=$(missing $variables)
    if [[ -z $why ]]; then
        python=$(interpreter "$place" | tail -n 1)
        [[ $python != -* ]] || why=${python#- }
    fi
    if [[ -n $why ]]; then
        printf '%s\t-\t-\t-\t-\t-\t-\t-\t-\tnot run: %s\n' "$name" "$why" >>"$table"
        echo "$name: not run: $why"
        continue
    fi
    run=(env "OMP_NUM_THREADS=1" $variables "PATH=$(dirname "$python"):$PATH" "PYTHONPATH=$PWD" "$python")
    about=$("${run[@]}" -c 'import platform, torch
print(platform.python_version(), torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), sep="\t")')
    began=$SECONDS
    tier=("${run[@]}" -m pytest -q -rfE -o cache_dir="$folder/$name.cache")
    rm -rf "$folder/$name.cache"
    "${tier[@]}" "${tests[@]}" "${arguments[@]}" >"$folder/$name.txt" 2>&1 || true
    # The last line: "1 failed, 5579 passed, 12 skipped, 7 errors in 411.62s"; none where pytest itself has failed.
    counts=$(tail -n 1 "$folder/$name.txt")
    number() { { grep -oE "[0-9]+ $1" <<<"$counts" || true; } | awk '{ n += $1 } END { print n + 0 }'; }
    failed=$(($(number failed) + $(number error)))
    passed=$(number passed) skipped=$(number skipped) seconds=$((SECONDS - began)) note=$(names "$folder/$name.txt")
    if ! grep -qE '[0-9]+ passed' <<<"$counts"; then
        failed=$((failed + 1)) note="no result: see $folder/$name.txt $note"
    elif ((failed)); then
        grep -E '^(E  |FAILED|ERROR)' "$folder/$name.txt" | cut -c1-300 | head -n 80 >&2
        "${tier[@]}" --last-failed -n 0 >"$folder/$name.again.txt" 2>&1 && code=0 || code=$?
        counts=$(tail -n 1 "$folder/$name.again.txt") unstable=$failed
        if ((code == 0)); then failed=0; elif ((code == 1)); then failed=$(($(number failed) + $(number error))); fi
        unstable=$((unstable - failed))
        ((unstable <= 0)) || { passed=$((passed + unstable)); note="$unstable unstable, passed when repeated: $note"; }
    fi
    ((failed == 0)) || bad=1
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$passed" "$failed" "$skipped" "$seconds" "$about" "$note" |
        tee -a "$table"
done
exit $bad
