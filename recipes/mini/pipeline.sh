#!/usr/bin/env bash
# From an English encoder to a multilingual Mixture of Experts: every stage of Nomic Embed v2, on 2 cores in
# about 20 minutes. docs/pipeline.md says what each stage does and how large the original was.
#
#   recipes/mini/pipeline.sh            # or: make pipeline
#   recipes/mini/pipeline.sh --resume   # go on after the last stage whose output is there
#
# These can be set before; relative paths start at the checkout:
#   MOEMBED_DATA  text.parquet, train/*.parquet, eval/TASK/*.parquet       OUT    where everything goes
#   BASE          the first model                                        TASKS  folders of eval/
#   PIECES, PARALLEL, QUESTIONS   new pieces, translations, questions of each source to mine for
#   PRETRAIN, CONTRASTIVE, FINETUNE   more key=value for these recipes, such as FINETUNE="steps=200 seed=1"
set -euo pipefail
cd "$(dirname "$0")/../.."

MOEMBED_DATA=${MOEMBED_DATA:-../shared/data}
export OUT=${OUT:-runs/mini}  # the recipes read it, too
BASE=${BASE:-minilm}
TASKS=${TASKS:-xquad-en xquad-es xquad-de xquad-ru xquad-ar xquad-hi jsquad-valid-ja iapp-test-th}
PIECES=${PIECES:-8000}
PARALLEL=${PARALLEL:-12000}
QUESTIONS=${QUESTIONS:-800}
PRETRAIN=${PRETRAIN:-}
CONTRASTIVE=${CONTRASTIVE:-}
FINETUNE=${FINETUNE:-}

refuse() { echo "pipeline: $1" >&2; exit 2; }
[[ $# -eq 0 || "$*" == --resume ]] || refuse "unknown argument $1; the only one is --resume"
[[ -e $MOEMBED_DATA/text.parquet && -d $MOEMBED_DATA/train && -d $MOEMBED_DATA/eval ]] ||
  refuse "MOEMBED_DATA is $MOEMBED_DATA, which holds no text.parquet, train and eval"
[[ ! -e $OUT || "$*" == --resume ]] || refuse "$OUT exists; go on there with --resume, or choose another OUT"
mkdir -p "$OUT/pairs"

# stage OUTPUT COMMAND...: run the command unless its output is there, and say how long it took
stage() {
  local output=$1 start=$SECONDS
  shift
  if [[ -e $output ]]; then echo "---- $output is there"; return; fi
  echo "---- $*"
  "$@"
  echo "---- $output: $((SECONDS - start)) s, $((SECONDS / 60)) min in all"
}

# thin ROWS FILE: so many rows of the file, or all, at even distances
thin() { awk -v n="$1" -v all="$(wc -l < "$2")" 'int(NR * n / all) > int((NR - 1) * n / all)' "$2"; }

# 1. Pairs without repetition: translations of English texts, and questions with the paragraphs that answer them
parallel_pairs() {
  moembed data dedup "$MOEMBED_DATA/train/*-parallel.parquet" --out "$OUT/pairs/parallel-all.jsonl" --overwrite
  thin "$PARALLEL" "$OUT/pairs/parallel-all.jsonl" > "$OUT/pairs/parallel.partial"
  mv "$OUT/pairs/parallel.partial" "$OUT/pairs/parallel.jsonl"
}
questions() {
  local source
  for source in squad-en jaquad-ja iapp-wiki-qa-th arcd-ar cmrc2018-trial-zh facqa-id faquad-pt; do
    moembed data dedup "$MOEMBED_DATA/train/$source.parquet" --by document \
      --out "$OUT/pairs/$source.jsonl" --overwrite >&2
    thin "$QUESTIONS" "$OUT/pairs/$source.jsonl"
  done > "$OUT/pairs/questions.partial"
  mv "$OUT/pairs/questions.partial" "$OUT/pairs/questions.jsonl"
}
stage "$OUT/pairs/parallel.jsonl" parallel_pairs
stage "$OUT/pairs/questions.jsonl" questions

# 2. More pieces for the tokenizer, learnt on texts of 37 languages
stage "$OUT/extended" \
  moembed tokenizer "$MOEMBED_DATA/text.parquet" --base "$BASE" --extend "$PIECES" --out "$OUT/extended"

# 3. Masked language modelling: what the new pieces mean
stage "$OUT/pretrained/model" \
  moembed pretrain recipes/mini/pretrain.yaml "base=$OUT/extended" "data=$MOEMBED_DATA/text.parquet" \
  "out=$OUT/pretrained" $PRETRAIN --overwrite

# 4. The consistency filter: drop translations that the first model does not find
stage "$OUT/pairs/filtered.jsonl" \
  moembed filter "$OUT/pairs/parallel.jsonl" --model "$BASE" --by language --block 256 --k 20 \
  --out "$OUT/pairs/filtered.jsonl"

# 5. Contrastive training on translations and questions, still dense
stage "$OUT/contrastive/model" \
  moembed train recipes/mini/contrastive.yaml $CONTRASTIVE --overwrite

# 6. Hard negatives, found by that model
stage "$OUT/pairs/mined.jsonl" \
  moembed mine "$OUT/pairs/questions.jsonl" --teacher "$OUT/contrastive" --rule relative:0.95 --negatives 4 \
  --out "$OUT/pairs/mined.jsonl"

# 7. Eight experts in every second layer; the vectors stay the same
stage "$OUT/upcycled" moembed upcycle "$OUT/contrastive" "$OUT/upcycled" --experts 8 --top-k 2

# 8. Fine-tuning with hard negatives, at several lengths of the vector at once (Matryoshka)
stage "$OUT/finetuned/model" \
  moembed train recipes/mini/finetune.yaml $FINETUNE --overwrite

# 9. Is the last model better than the first?
read -ra tasks <<< "$TASKS"
stage "$OUT/report.html" \
  moembed evaluate "$BASE" bm25 "$OUT/contrastive" "$OUT/finetuned" --no-baselines \
  --tasks "${tasks[@]/#/$MOEMBED_DATA/eval/}" --html "$OUT/report.html"
echo "---- $((SECONDS / 60)) min; open $OUT/report.html"
