#!/usr/bin/env bash
# Runs many trainings: one of the paper's sweeps, by name, or a grid of your own.
#
#   ./sweep.sh lr configs/study.toml seed=0,1,2                      # a sweep, at three seeds
#   ./sweep.sh lr configs/study.toml optimizer=adamw,signum lr=1e-3,1e-2      # fewer optimizers, other values
#   ./sweep.sh lr configs/study.toml steps=4000 --jobs 2 -- --compile=false   # longer, two at a time
#   ./sweep.sh grid configs/nano.toml optimizer=adamw,signum lr=1e-3,1e-2 seed=0,1      # a grid of your own
#   ./sweep.sh grid configs/nano.toml lr_of=head:0.5,head:0.5+embed:2      # + joins roles within one value
#   ./sweep.sh grid configs/nano.toml optimizer=../mine.py lr=1e-3,1e-2      # a rule in a file of your own
#   ./sweep.sh list configs/nano.toml <grids.txt      # a grid for each line of the file
#   ./sweep.sh momentum configs/150m.toml --print     # only prints one command a line, and the hours
#
# A line of grids.txt looks like "lr=1e-3 seed=0,1". Empty lines and lines that begin with # are left out.
#
# These are the sweeps: lr, momentum, tied, weight_decay, warmup, batch_size, beta2, eps, adalayer,
# hybrid_last, hybrid_last_norm, hybrid_reverse, hybrid_adafactor, norms_untrained, frozen, adasgd,
# granularity, effective_lr, sophia, league. Their values stand in "case $sweep" below.
# optimizer=a,b narrows a sweep to these optimizers. Any other key=a,b,c replaces the sweep's values of that
# key; if the sweep does not have the key, all runs get it. Options after -- are for all runs, too, but they
# are not part of the names. What changes a result therefore belongs before --.
#
# Each combination of values is a run of its own in runs/, named after its values. A rule in a file also has
# the beginning of the file's hash in the name, so a changed file makes new runs. The same command can be
# started again at any time: it skips finished and diverged runs, resumes interrupted ones, and tries failed
# ones again. Before the first run it prepares the data that the config names, if they are missing. Data and
# runs are in the folder where the command is given.
# --jobs N runs N at a time, each with a share of the cores and a GPU; they print to runs/NAME/output.txt.
# The variable PYTHON names the interpreter; the default is python.
# Exit codes: 0 all runs ended, 1 some failed, 2 wrong usage, 75 interrupted.
set -fu
python=${PYTHON:-python}
here=$(dirname "$0")
if [ "$here" = . ]; then train=train.py; else train=$here/train.py; fi

usage() { sed -n '2,29s/^# \{0,1\}//p' "$0" >&2; exit 2; }
refuse() { echo "sweep.sh: error: $*" >&2; exit 2; }
modules() { PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} exec "$python" -P "$@"; }    # for use in a subshell
command -v "$python" >/dev/null || refuse "PYTHON=$python: no such program"

# --- the command line
[ $# -ge 2 ] || usage
sweep=$1 config=$2
[ "$sweep" != grid ] || [ $# -ge 3 ] || usage
shift 2
asked="" print="" jobs=1
check_word() {    # refuses a word that is not key=a,b,c
  case $1 in
    *[!A-Za-z0-9_.,:+=/-]*) refuse "'$1': values are letters, digits and _ . : + - /" ;;
    -* | =* | *=*=* | *=,* | *,,* | *, | *=) refuse "'$1': give key=a,b,c" ;;
    *=*) ;;
    *) refuse "'$1': give key=a,b,c" ;;
  esac
}
check_once() {    # refuses words of which two have the same key
  local word keys=" "
  for word in "$@"; do
    case $keys in *" ${word%%=*} "*) refuse "${word%%=*}: is given two times; give ${word%%=*}=a,b,c" ;; esac
    keys="$keys${word%%=*} "
  done
}
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --print) print=yes ;;
    --jobs=*) jobs=${1#*=} ;;
    --jobs) jobs=${2-}; [ $# -lt 2 ] || shift ;;
    runs=*) refuse "$1: a sweep's runs are in runs/ of the folder you start it in" ;;
    *) check_word "$1"; asked="$asked $1" ;;
  esac
  shift
done
for word in "$@"; do
  case $word in
    --runs | --runs=*) refuse "$word: a sweep's runs are in runs/ of the folder you start it in" ;;
  esac
done
[ "${1-}" != -- ] || shift
check_once $asked
case $jobs in "" | *[!0-9]* | 0*) refuse "--jobs $jobs: give how many runs at a time, 1 or more" ;; esac

[ -f "$config" ] || [ -f "$here/$config" ] ||
  refuse "$config: no such file in $PWD; what ships is in $here/configs"
stem=$(basename "$config" .toml)
case $stem in "" | [!A-Za-z0-9_]* | *[!A-Za-z0-9_.,:+=-]*)
  refuse "'$config': runs are named after it, so name it with letters, digits and _ . , : + = -" ;; esac

# --- what to run: $runs has a line for each run, with its name and then its options
newline='
'
runs=""
grid() {    # key=a,b,c ...: adds all combinations to $runs; the command line narrows, replaces and adds keys
  local words="" word key value values theirs lines line more name
  for word in "$@" $asked; do
    key=${word%%=*} values=${word#*=}
    case " $words" in *" $key="*) continue ;; esac
    for theirs in $asked; do
      [ "${theirs%%=*}" = "$key" ] || continue
      if [ "$key" = optimizer ] && [ "$sweep" != grid ]; then
        more=""
        for value in ${values//,/ }; do
          case ",${theirs#*=}," in *",$value,"*) more="$more,$value" ;; esac
        done
        [ -n "$more" ] || return 0    # the command line asks for no optimizer of this grid
        values=${more#,}
      else
        values=${theirs#*=}
      fi
    done
    words="$words $key=$values"
  done
  lines=$stem
  local IFS=$newline
  for word in ${words// /$newline}; do
    key=${word%%=*} values=${word#*=} more=""
    for line in $lines; do
      for value in ${values//,/$newline}; do
        if [ "$value" = default ]; then more="$more$line$newline"; continue; fi
        name=${value##*/}
        case $value in *.py) name=$name@$(hash_of "$value") || exit 2 ;; esac
        more="$more${line%% *},$key=$name${line#"${line%% *}"} --$key=$value$newline"
      done
    done
    lines=${more%"$newline"}
  done
  runs="$runs$lines$newline"
}
hash_of() {    # prints the beginning of the hash of a rule's file, because another version is another rule;
               # zoo/files.py can do this, too, but its import takes seconds
  [ -f "$1" ] || refuse "$1: there is no such file"
  modules -c "import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest()[:8])" "$1"
}
ask() {    # runs Python statements, which may use the path config and these imports; for use in a subshell
  modules -c "
import math, shlex, sys
from trainer.errors import UserError, one_line
from trainer.settings import Settings, defaults, read
from zoo import RULES
config = sys.argv[1]
try:
    $1
except UserError as error:
    sys.exit(f'sweep.sh: error: {one_line(error)}')" "$config"
}
number_of_steps() {    # prints the steps that the command line gives, else those of the config
  local word
  for word in $asked; do
    case $word in
      steps=*,*) refuse "$word: $sweep needs one number of steps" ;;
      steps=*) echo "${word#*=}"; return ;;
    esac
  done
  ask 'print(defaults(config, "adamw")["steps"])'
}

# --- the paper's sweeps: a line for each grid. A key that a grid does not name has the config's value, so the
# learning rate is the tuned one unless it is swept. The value "default" is the config's, too, but it is not
# part of the run's name, so that all sweeps share that run.
all=adamw,adafactor,adalayer_star,lion,signum,sgd
lrs=1e-4,3.16e-4,1e-3,3.16e-3,1e-2,3.16e-2,0.1,0.316,1
sign_lrs=1e-5,3.16e-5,1e-4,3.16e-4,1e-3,3.16e-3,1e-2,3.16e-2,0.1
rest_lrs=0.1,0.316,1,3.16,10,31.6,100,316,1000,3160
case $sweep in
  grid)
    grid ;;
  list)
    while read -r line || [ -n "$line" ]; do
      case $line in "" | "#"*) continue ;; esac
      for word in $line; do check_word "$word"; done
      # shellcheck disable=SC2086    # words without blanks or globs, as checked above
      check_once $line && grid $line
    done ;;
  lr)
    grid optimizer=adamw,adafactor,adalayer_star lr=$lrs
    grid optimizer=lion,signum lr=$sign_lrs
    grid optimizer=sgd lr=1e-3,3.16e-3,1e-2,3.16e-2,0.1,0.316,1,3.16,10 ;;
  momentum)    # the default is 0.9, and 0.98 for SGD
    grid optimizer=adamw,adafactor,adalayer_star,lion,signum beta1=0,0.5,0.8,default,0.95,0.98,0.99
    grid optimizer=sgd beta1=0,0.5,0.8,0.9,0.95,default,0.99 ;;
  tied)    # Adam with beta1 = beta2; and for comparison Signum, and Adam with beta2 0.95
    for beta in 0 0.5 0.8 0.9 0.98 0.99; do grid optimizer=adamw beta1=$beta beta2=$beta; done
    grid optimizer=adamw beta1=0.95
    grid optimizer=adamw,signum beta1=0,0.5,0.8,default,0.95,0.98,0.99 ;;
  weight_decay)
    grid optimizer=$all weight_decay=default,1e-6,1e-5,1e-4,1e-3,1e-2,0.1 ;;    # the default is 0
  warmup)
    grid optimizer=$all warmup=0.02,0.05,default,0.2,0.4,0.6,0.8 ;;    # the default is 0.1
  batch_size)    # with the same number of tokens and the same learning rate
    case "$asked" in *" batch="*) refuse "batch_size sets batch itself; leave it out" ;; esac
    batch=$(ask 'print(defaults(config, "adamw")["batch"])') && steps=$(number_of_steps) || exit 2
    case "$asked" in *" steps="*) of_usual=steps=$steps asked=${asked/ steps=$steps/} ;; *) of_usual="" ;; esac
    grid optimizer=$all batch=$((batch / 2)) steps=$((steps * 2))
    grid optimizer=$all $of_usual
    grid optimizer=$all batch=$((batch * 2)) steps=$((steps / 2))
    grid optimizer=$all batch=$((batch * 4)) steps=$((steps / 4)) ;;
  beta2)    # the default is 0.95; Signum and SGD have no beta2
    grid optimizer=adamw,adafactor,adalayer_star,lion beta2=0.8,0.9,default,0.98,0.99
    grid optimizer=signum,sgd ;;
  eps)    # at beta2 0.98, as in the paper
    grid optimizer=adamw,adafactor,adalayer_star beta2=0.98 eps=1e-15,1e-12,1e-8,1e-5 ;;
  adalayer)    # a second moment per tensor; also per row of the head; also per row of the embedding
    grid optimizer=adalayer,adalayer_star lr=$lrs
    grid optimizer=adalayer rows=head+embed lr=$lrs ;;
  hybrid_last)
    grid optimizer=adalayer_star adaptive=head rest=sgd_ema rest_lr=$rest_lrs ;;
  hybrid_last_norm)
    grid optimizer=adalayer_star adaptive=head+norm rest=sgd_ema rest_lr=$rest_lrs ;;
  hybrid_reverse)    # the paper has a third of Adalayer*'s best learning rate: lr=3.16e-3 if the best is 1e-2
    grid optimizer=adalayer_star adaptive=qkv+matrix rest=sgd_ema rest_lr=$rest_lrs ;;
  hybrid_adafactor)
    grid optimizer=adafactor adaptive=head+norm rest=sgd_ema rest_lr=$rest_lrs ;;
  norms_untrained)    # in the hybrid whose last layer alone is adaptive, and in Adalayer*
    grid optimizer=adalayer_star untrained=norm adaptive=head rest=sgd_ema rest_lr=$rest_lrs
    grid optimizer=adalayer_star untrained=norm lr=$lrs ;;
  frozen)    # ratios are measured for a tenth of the steps (the paper: 1,000 of 25,000, of larger batches)
    steps=$(number_of_steps) || exit 2
    measure=$((steps < 10 ? 1 : steps / 10))
    grid optimizer=adalayer_star freeze_steps=$measure updating=head+norm,none,head,norm lr=$lrs
    grid optimizer=adalayer_star freeze_steps=$measure updating=head untrained=norm lr=$lrs ;;
  adasgd)    # AdaSGD alone, with two momenta; and AdaSGD as the rest beside Adalayer*
    grid optimizer=adasgd beta1=default,0.98 lr=$lrs
    grid optimizer=adalayer_star adaptive=head+norm rest=adasgd rest_lr=$lrs ;;
  granularity)    # not in the paper: from a second moment per tensor over one per row to one per weight
    grid optimizer=adalayer,adalayer_star,adamw lr=$lrs
    grid optimizer=adalayer rows=embed+qkv+matrix+head lr=$lrs ;;
  effective_lr)    # the paper's Fig. 7
    grid optimizer=adalayer_star log_blocks=true ;;
  sophia)    # for comparison with Signum
    grid optimizer=sophia lr=$sign_lrs ;;
  league)    # not in the paper: every rule, with five learning rates about its usual one
    half_decades=(1e-6 3.16e-6 1e-5 3.16e-5 1e-4 3.16e-4 1e-3 3.16e-3 1e-2 3.16e-2 0.1 0.316 1 3.16 10 31.6
                  100 316 1000 3160 10000)
    middles=$(ask 'for name in RULES:
        print(name, round(2 * math.log10(defaults(config, name)["lr"])) + 12)') || exit 2
    while read -r name middle; do    # middle: where the usual learning rate is in half_decades
      five=${half_decades[*]:middle-2:5}
      grid "optimizer=$name" "lr=${five// /,}"
    done <<<"$middles" ;;
  *)
    echo "sweep.sh: error: there is no sweep '$sweep'" >&2
    usage ;;
esac
runs=$(printf %s "$runs" | awk '!seen[$0]++')
[ -n "$runs" ] || refuse "no run is asked for"
twice=$(echo "$runs" | awk 'seen[$1]++ {print $1; exit}')
[ -z "$twice" ] || refuse "$twice: two runs would have this name; give their files different names"
for theirs in $asked; do
  case $theirs in optimizer=*) theirs=${theirs#*=} ;; *) continue ;; esac
  for value in ${theirs//,/ }; do
    case $runs$newline in *" --optimizer=$value"[\ $newline]*) ;; *)
      refuse "optimizer=$value: is not in the sweep $sweep; --print without it shows those that are" ;;
    esac
  done
done

commands() {    # reads lines as in $runs and prints a command for each; the arguments are options for all
  local name options more=""
  [ $# = 0 ] || more=$(printf ' %q' "$@")
  while read -r name options; do
    printf '%q %q --config=%q %s%s--name=%s --resume --sample_tokens=0%s\n' \
      "$python" "$train" "$config" "$options" "${options:+ }" "$name" "$more"
  done
}
# --- before anything starts, refuse what cannot run and what has already run with other settings
lines=$(echo "$runs" | commands "$@")
plan=$(modules -m trainer.plan <<<"$lines") || {
  [ $# = 0 ] || echo "sweep.sh: what changes a result belongs before --, as key=value, in the runs' names" >&2
  exit 2
}
if [ -n "$print" ]; then
  echo "$lines$newline$plan"
  exit
fi
status_of() {    # prints the status of a run: done, diverged, interrupted, failed, running, or new
  local status
  status=$(sed -n 's/.*"status": "\([a-z]*\)".*/\1/p' "runs/$1/status.json" 2>/dev/null | sed 1q)
  echo "${status:-new}"
}

# --- run them in --jobs slots; pid and title are those of the run in each slot
pid=() title=() failed="" stopped=""
cores=$(modules -m trainer.cores)
gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)}
gpus=${gpus//[,$newline]/ }

prepare() {    # makes the data that the runs need and that are missing
  ask '
    import prepare_c4
    for one, _, tables in (read(shlex.split(line)[2:]) for line in sys.stdin):
        of_config = one.prepare and one.data == tables.get("data", {}).get("data")
        prepare_c4.prepare_if_missing(one.data, one.prepare, of_config or one.data == Settings.data)
    ' 3<&- <<<"$lines" &
  pid[0]=$! title[0]="the data"
  wait "${pid[0]}"
  code=$? title[0]=""
  if [ -n "$stopped" ]; then wait "${pid[0]}"; return; fi    # a signal ended the first wait
  [ "$code" = 0 ] || refuse "no run has started, since there are no data"
}
same_rules() {    # whether the rules' files are still those after which the run was named; else it says which
  local word
  for word in $2; do
    case $word in
      --*=*.py)
        case $1 in
          *"@$(hash_of "${word#*=}")"*) ;;
          *) echo "$1: ${word#*=} has changed since this sweep began; start the sweep again" >&2; return 1 ;;
        esac ;;
    esac
  done
}
start() {    # starts a run; the arguments are a slot, its name, its options, and the options for all
  local slot=$1 name=$2 options=$3
  shift 3
  (
    if [ "$jobs" -gt 1 ]; then
      share=$((cores > jobs ? cores / jobs : 1))
      case " $options $*" in *" --threads"*) ;; *) options="$options --threads=$share" ;; esac
      # shellcheck disable=SC2086    # a list of numbers
      read -ra gpu <<< $gpus
      [ ${#gpu[@]} = 0 ] || export CUDA_VISIBLE_DEVICES="${gpu[slot % ${#gpu[@]}]}"
      mkdir -p "runs/$name" && exec >>"runs/$name/output.txt" 2>&1
    fi
    # shellcheck disable=SC2086    # words without blanks or globs, as checked above
    exec "$python" "$train" "--config=$config" $options "--name=$name" --resume --sample_tokens=0 "$@"
  ) 3<&- &
  pid[slot]=$! title[slot]=$name
}
look() {    # reports the runs that ended; sets free to an empty slot or to "", and busy to the number of runs
  local slot name code after
  free="" busy=0
  for ((slot = 0; slot < jobs; slot++)); do
    name=${title[slot]-}
    if [ -n "$name" ] && ! kill -0 "${pid[slot]}" 2>/dev/null; then
      wait "${pid[slot]}"
      code=$? after=$(status_of "$name") title[slot]=""
      echo "$name: $after"
      case $after in
        "done" | diverged) ;;
        *) failed="$failed $name"
           [ "$jobs" = 1 ] || [ "$code" = 75 ] || tr '\r' '\n' <"runs/$name/output.txt" | tail -n 1 >&2 ;;
      esac
      [ "$code" != 75 ] || stop
    fi
    if [ -n "${title[slot]-}" ]; then busy=$((busy + 1)); else free=${free:-$slot}; fi
  done
}
stop() {    # tells all runs to save and end, because a signal came to this script or to a run
  local slot
  stopped=yes
  for ((slot = 0; slot < jobs; slot++)); do
    [ -z "${title[slot]-}" ] || kill "${pid[slot]}" 2>/dev/null
  done
}
trap stop INT TERM HUP USR1 USR2 XCPU
case $plan in *"# first: "*) unprepared=yes ;; *) unprepared="" ;; esac

total=0
while [ -z "$stopped" ] && read -r name options <&3; do
  total=$((total + 1))
  before=$(status_of "$name")
  case $before in
    "done" | diverged) echo "$name: $before already"; continue ;;
  esac
  if ! same_rules "$name" "$options"; then failed="$failed $name"; continue; fi
  if [ -n "$unprepared" ]; then prepare; unprepared=""; fi
  while look && [ -z "$free$stopped" ]; do sleep 0.2; done
  [ -z "$stopped" ] || break
  echo "$name: starting ($before)"
  start "$free" "$name" "$options" "$@"
done 3<<EOF
$runs
EOF
[ -z "$stopped" ] || stop    # again, for a run that was just starting
while look && [ "$busy" -gt 0 ]; do sleep 0.2; done
if [ -n "$stopped" ]; then echo "sweep.sh: interrupted; start it again to go on" >&2; exit 75; fi

# --- the outcome
echo "$total runs"
for name in $failed; do echo "failed: $name (runs/$name)"; done
[ -z "$failed" ]
