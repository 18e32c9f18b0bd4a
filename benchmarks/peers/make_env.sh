#!/usr/bin/env bash
# An environment of its own for one peer:  benchmarks/peers/make_env.sh SYSTEM FOLDER
# fast-plaid and xtr-warp-rs each fit one release of torch, which brings CUDA packages of several gigabytes.
set -euo pipefail
system=$1 folder=$2
python3 -m venv "$folder"
pip="$folder/bin/pip --disable-pip-version-check install -q"
case $system in
  colbert-ai) $pip torch==2.13.0 && $pip torch==2.13.0 transformers==4.57.6 colbert-ai==0.2.22 faiss-cpu ;;
  exact-torch) $pip numpy torch==2.13.0 ;;
  fast-plaid) $pip fast-plaid==1.7.0.2110 ;;
  xtr-warp-rs) $pip xtr-warp-rs==2.1.0.2110 ;;
  maxsim-cpu) $pip numpy maxsim-cpu==0.1.0 ;;
  flag-embedding) $pip torch==2.13.0 && $pip torch==2.13.0 transformers==4.57.6 FlagEmbedding==1.4.2 ;;
  openvino) $pip openvino nncf tokenizers numpy ;;
  *) echo "make_env.sh: no peer '$system'" >&2; exit 2 ;;
esac
