#!/usr/bin/env bash
# Everything that a GPU should be measured with, once, the most important first; 13 minutes at most:
#   OUT=results benchmarks/gpu.sh
# MODEL: sd15, sdxl or a diffusers folder. PARTS: some of them. DEVICE=cpu MODEL=tiny DTYPE=float32 PATIENCE=5 tries the script itself.
# Each part has its own time limit (times PATIENCE), at which Ctrl-C reaches it, and writes its results as they come; a part that fails keeps nobody from the next.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python} DEVICE=${DEVICE:-cuda} MODEL=${MODEL:-sd15} DTYPE=${DTYPE:-float16}
OUT=${OUT:-.flexi/gpu} PATIENCE=${PATIENCE:-1} PARTS=${PARTS:-model equality engine start peers search}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false BENTOML_DO_NOT_TRACK=true
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
FOLDER=$MODEL
[ -d "$MODEL" ] || FOLDER=.flexi/random/$MODEL-$DTYPE
nvidia-smi >"$OUT/card.txt" 2>&1 || true
failed=0

part() { # NAME SECONDS COMMAND…
	local name=$1 seconds=$(($2 * PATIENCE)) start=$SECONDS code=0
	shift 2
	case " $PARTS " in *" $name "*) ;; *) return ;; esac
	timeout --signal=INT --kill-after=20 "$seconds" "$@" >"$OUT/$name.log" 2>&1 || code=$?
	[ $code -eq 0 ] || failed=1
	printf '%s\texit %d%s\t%d s\n' "$name" "$code" "$([ $code -ne 124 ] || echo ' (its time was over)')" $((SECONDS - start)) |
		tee -a "$OUT/parts.txt"
}

[ -f "$FOLDER/model_index.json" ] || part model 40 "$PYTHON" -m engine random "$MODEL" "$FOLDER" --dtype "$DTYPE"
part equality 40 "$PYTHON" -m benchmarks.engine equality --device "$DEVICE" --out "$OUT/equality.json"
part engine 280 "$PYTHON" -m benchmarks.engine --model "$FOLDER" --device "$DEVICE" --dtype "$DTYPE" \
	--limit $((150 * PATIENCE)) --out "$OUT/engine.json"
# Cold means the disk's cache here: what the engine's part compiled is found again, and what that took is in engine.json.
part start 90 env FLEXI_DEVICE="$DEVICE" FLEXI_DTYPE="$DTYPE" "$PYTHON" -m benchmarks.start --model "$FOLDER" --starts 1
part peers 260 "$PYTHON" -m loadtests.peers --real --model "$FOLDER" --device "$DEVICE" --dtype "$DTYPE" \
	--mix fewer --clients 32 1 --rounds 1 --warm-up 4 --seconds 12 --start-seconds 130 --out "$OUT/peers"
part search 60 "$PYTHON" -m search_jobs run --model "$FOLDER" --features models/emoji64/clip --prompts models/emoji64/prompts.txt \
	--device "$DEVICE" --dtype "$DTYPE" --images 4 --select 4 --finals 4 --heldout 4 --generations 1 --population 4 --out "$OUT/search"
exit $failed
