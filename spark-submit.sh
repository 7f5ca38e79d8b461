#!/usr/bin/env bash
# The whole night on a cluster, top to bottom.   ./spark-submit.sh 2025-10-30 conf/cluster.yaml [stage …]
#
# Safe to run again: a stage whose inputs and params have not changed is skipped, an interrupted one resumes.
#   SPARK_MASTER   yarn, k8s://…, spark://…   (default: local[*]); a spark:// master also wants
#                  SPARK_ARGS='--conf spark.authenticate.secret=…', since conf/spark-defaults.conf turns it on
#   SPARK_ARGS     further arguments of spark-submit
#   RAY_ADDRESS    http://head:8265 submits jobs to that cluster; unset runs the Ray stages on this machine
#   PYTHON         the interpreter of drivers, executors and jobs (default: .venv's, else python3)
#   RAY_PYTHON     that of Ray jobs, where the cluster has it elsewhere
# On a cluster name root and files in the configuration by URI or absolute path; the file itself lies in conf/, or
# where every machine finds it.
set -euo pipefail
cd "$(dirname "$0")"

ds=${1:?usage: ./spark-submit.sh YYYY-MM-DD [conf/night.yaml] [stage …]}
config=${2:-conf/demo.yaml}
only=" ${*:3} "
for stage in "${@:3}"; do
  [ -f "jobs/$stage.py" ] || { echo "spark-submit.sh: there is no stage $stage; known: $(cd jobs && echo *.py | sed 's/\.py//g')" >&2; exit 2; }
done
[ -f "$config" ] || { echo "spark-submit.sh: there is no configuration $config; name one after the date" >&2; exit 2; }
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || command -v python3)}
export PYSPARK_PYTHON=${PYSPARK_PYTHON:-$PYTHON} PYSPARK_DRIVER_PYTHON=$PYTHON
export SPARK_HOME=${SPARK_HOME:-$("$PYTHON" -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parent)')}

# One wheel: Spark takes it as a .zip (a .whl works on the driver only), Ray unpacked beside jobs/ and conf/ (a .whl it
# would pip install with all dependencies, over those of its nodes).
ship=$(mktemp -d)
trap 'rm -rf "$ship"' EXIT
"$PYTHON" -m hatchling build -t wheel -d "$ship" >/dev/null
mv "$ship"/*.whl "$ship/nightjar.zip"
"$PYTHON" -m zipfile -e "$ship/nightjar.zip" "$ship/ray"
cp -r jobs conf "$ship/ray"

ray_job() { "$PYTHON" -m ray.scripts.scripts job "$1" --address "$RAY_ADDRESS" "${@:2}"; }

# Spark's stages come first and take long: learn now rather than then that the Ray cluster does not let us in.
if [ -n "${RAY_ADDRESS:-}" ] && ! said=$(ray_job list 2>&1); then
  echo "spark-submit.sh: Ray at $RAY_ADDRESS refuses: $(grep -E '^[A-Za-z_.]+(Error|Exception):' <<<"$said" | tail -n 1);" \
    "check RAY_ADDRESS and the token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)" >&2
  exit 2
fi

wanted() { [ -z "${only// /}" ] || [[ $only == *" $1 "* ]]; }

on_spark() {
  wanted "$1" || return 0
  "$SPARK_HOME/bin/spark-submit" --master "${SPARK_MASTER:-local[*]}" --name "nightjar $1 $ds" \
    --properties-file conf/spark-defaults.conf --py-files "$ship/nightjar.zip" ${SPARK_ARGS:-} \
    "jobs/$1.py" --config "$config" --ds "$ds"
}

on_ray() {
  wanted "$1" || return 0
  if [ -z "${RAY_ADDRESS:-}" ]; then on_local "$1"; return; fi
  ray_job submit --working-dir "$ship/ray" -- "${RAY_PYTHON:-$PYTHON}" "jobs/$1.py" --config "$config" --ds "$ds"
}

on_local() {
  wanted "$1" || return 0
  PYTHONPATH="$ship/ray" "$PYTHON" "jobs/$1.py" --config "$config" --ds "$ds"
}

on_spark clean_events      # events_raw (all scenes)                      -> events, quarantine
on_spark build_items       # items_raw (+ knowledge triples), events      -> items, item_text, items_quarantine
on_ray   encode_items      # item_text                                    -> item_embeddings, embeddings_quarantine   (GPU; incremental)
on_spark weigh_events      # events, items, users_raw                     -> interactions, users, popularity, user_texts, query_text
on_spark relate_items      # item_text, interactions                      -> co_occurrence
on_ray   encode_queries    # query_text                                   -> query_embeddings, queries_quarantine   (GPU; incremental)
on_ray   learn_taste       # item_embeddings, interactions, co_occurrence -> item_vectors, neighbours, query_vectors
on_ray   fit_blend         # interactions, neighbours                     -> blend, item_signals
on_spark aggregate_users   # interactions, user_texts, item_vectors        -> user_vectors
on_ray   build_index       # item_vectors                                 -> index_shards
on_ray   retrieve          # user_vectors, interactions, index_shards     -> candidates
on_spark rank              # candidates, interactions, neighbours, blend  -> recommendations
on_local publish           # recommendations, held against users and items -> metrics, LATEST.json
