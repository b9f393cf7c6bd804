#!/bin/bash
# A machine with this one's programs and files, its own systemd as process 1, and its own /etc,
# /var and accounts: to install packages and start units for real, and to throw away afterwards.
# Real are systemd, journald, dnf's scriptlets and every sandbox of a unit; kernel and network are
# this machine's. Nothing that is written in it reaches this machine's files: they lie below an
# overlay in memory, which ends with its process 1.
#
#   machine.sh up DIR        prints the process id of its systemd
#   machine.sh in DIR CMD…   runs a command in it
#   machine.sh down DIR      ends it
#
# Needs: root, systemd, overlayfs, cgroup v2 (also as the "unified" part of a mixed setup).
set -euo pipefail

me=$(readlink -f "$0")
group_root=/sys/fs/cgroup
[ -e $group_root/cgroup.procs ] || group_root=$group_root/unified

group() { echo "$group_root/hvbak-machine${1//\//-}"; }

# In the new namespaces: builds the root and becomes systemd.
become() {
  local dir=$1 root=$1/root
  mount -t tmpfs -o mode=700 tmpfs "$dir"
  mkdir -p "$dir/upper" "$dir/work" "$root"
  mount -t overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" overlay "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  # devpts and shm stay this machine's; nothing of it is changed.
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  mkdir -p "$root/run/lock"
  # No unit of this machine: only systemd's own core, journald and what is installed later.
  rm -rf "$root/etc/systemd/system" "$root/var/log/journal" "$root/var/lib/systemd"
  mkdir -p "$root/etc/systemd/system" "$root/var/lib/systemd" "$root/var/log/journal"
  tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
  local unit
  for unit in "$root"/lib/systemd/system/{sysinit,basic,timers,sockets,paths,slices,multi-user,local-fs,local-fs-pre,swap,network-online}.target.wants/*; do
    unit=${unit##*/}
    case $unit in
      systemd-journal*|-.slice|system.slice) ;;
      *) ln -sf /dev/null "$root/etc/systemd/system/$unit" ;;
    esac
  done
  # Of what sysinit wants, the journal stays: it is this test's witness.
  rm -f "$root/etc/systemd/system/"systemd-journald*
  ln -sf /dev/null "$root/etc/systemd/system/systemd-journal-flush.service"
  # The kernel's words are this machine's, and many.
  mkdir -p "$root/etc/systemd/journald.conf.d"
  printf '[Journal]\nReadKMsg=no\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/machine.conf"
  : >"$root/etc/fstab"
  # systemd puts credentials where a unit sees them by a mount that must spread to here; from the
  # machine outside these mounts are cut off.
  mount --make-rshared "$root"
  exec chroot "$root" /usr/bin/env -i container=hvbak-trial PATH="$PATH" \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
}

case ${1:-} in
  up)
    dir=$2
    mkdir -p "$dir" "$(group "$dir")"
    # A group of its own, and a namespace that has it as its root: systemd rules all below.
    (
      echo "$BASHPID" >"$(group "$dir")/cgroup.procs"
      exec setsid unshare --pid --fork --kill-child --mount --cgroup --ipc --uts \
        --propagation private "$me" become "$dir" </dev/null >"$dir.log" 2>&1
    ) &
    outer=$!
    for _ in $(seq 300); do
      inner=$(pgrep -P "$outer" || true)
      if [ -n "$inner" ] && [ "$(cat "/proc/$inner/comm" 2>/dev/null)" = systemd ]; then
        echo "$inner" >"$dir.pid"
        for _ in $(seq 300); do
          state=$("$me" in "$dir" systemctl is-system-running 2>/dev/null || true)
          case $state in running | degraded) echo "$inner"; exit 0 ;; esac
          sleep 0.1
        done
        echo "its systemd does not come up (says '$state')" >&2
        "$me" in "$dir" systemctl list-jobs >&2 || true
        "$me" down "$dir"
        exit 1
      fi
      kill -0 "$outer" 2>/dev/null || break
      sleep 0.1
    done
    cat "$dir.log" >&2
    exit 1
    ;;
  become) become "$2" ;;
  in)
    dir=$2
    pid=$(cat "$dir.pid")
    shift 2
    exec nsenter --target "$pid" --mount --pid --cgroup --ipc --uts --root --wdns=/ \
      env -i PATH="$PATH" HOME=/root LANG=C.UTF-8 "$@"
    ;;
  down)
    dir=$2
    # All processes of its namespace end with its process 1, and the mounts with them.
    [ ! -e "$dir.pid" ] || kill -9 "$(cat "$dir.pid")" 2>/dev/null || true
    for _ in $(seq 50); do
      find "$(group "$dir")" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.1
    done
    rm -rf "$dir.pid" "$dir.log"
    rmdir "$dir" 2>/dev/null || true
    ;;
  *)
    sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
