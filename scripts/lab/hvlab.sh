#!/bin/bash
# Throw-away hypervisors with real device-mapper and LVM: user-mode Linux guests of installed
# Debian packages, on a bridge in a network namespace of their own. The storage is simulated
# as far as a LUN is a file and its multipath name a linear mapping; LVM, udev, sshd and
# qemu-img in the guest are the real ones. There is no vdsm, sanlock or libvirt in it.
set -euo pipefail

usage() {
    cat <<'U'
usage: hvlab.sh COMMAND ...        (root; Debian)

  deps                             install the Debian packages that are missing
  image [-f]                       build the guest image (cached; -f: anew)
  up NAME -a N [option...]         start a host at address NET.N and wait for its sshd
       -l FILE[:WWID]                attach FILE as a LUN, /dev/mapper/WWID (repeatable;
                                     several guests may share one FILE)
       -c open|filter|devices        what plain LVM sees (default filter: nothing of the LUNs)
       -m MB                         memory (default 512)
       -p PORT                       also reachable at 127.0.0.1:PORT outside the namespace
  ssh NAME [COMMAND...]            run a command as root in the host
  env NAME                         HOST, PORT, KEY, KNOWN_HOSTS of the host
  wwid FILE                        the WWID that -l FILE gives by default
  down NAME|all                    stop one host, or all and the namespace

environment: HVLAB_CACHE (target/hvlab of this project)  HVLAB_RUN (/tmp/hvlab)
             HVLAB_NS (hvlab)  HVLAB_NET (10.77.0)
U
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HVLAB_CACHE:-$here/../../target/hvlab}
run=${HVLAB_RUN:-/tmp/hvlab}
ns=${HVLAB_NS:-hvlab}
net=${HVLAB_NET:-10.77.0}
. "$here/net.sh"

host_packages='user-mode-linux qemu-utils lvm2 udev kmod openssh-server openssh-client e2fsprogs
 iproute2 busybox-static procps socat'
image_packages='bash dash base-files coreutils util-linux mount grep sed mawk findutils diffutils tar gzip
 kmod procps hostname iproute2 passwd login libc-bin ncurses-base openssh-server openssh-client
 lvm2 dmsetup udev qemu-utils netbase'
# Their dependencies come along, except these and all that only these need.
image_without='python3 perl-base debconf ucf adduser init-system-helpers sensible-utils dpkg
 libpam-runtime debianutils lsb-base runit-helper'
image_modules='dm-mod loop nfs nfsv4'

die() { echo "hvlab: $*" >&2; exit 1; }
now() { date +%s%N; }
took() { echo "$(( ($(now) - $1) / 1000000 )) ms"; }

deps() {
    local missing=() p
    for p in $host_packages; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
    [ ${#missing[@]} = 0 ] && return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Names of installed packages that the given ones need (themselves included).
closure() {
    dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n' |
        awk -F '\t' -v want="$1" -v without="$2" '
            /^ii/ { dep[$2] = $4
                    n = split($3, p, /, */)
                    for (i = 1; i <= n; i++) { sub(/ .*/, "", p[i]); if (p[i] != "" && !(p[i] in by)) by[p[i]] = $2 } }
            END { n = split(without, w, /[ \n]+/); for (i = 1; i <= n; i++) skip[w[i]] = 1
                  top = split(want, stack, /[ \n]+/)
                  while (top > 0) {
                      name = stack[top--]
                      if (!(name in dep)) name = by[name]
                      if (name == "" || name in seen || name in skip) continue
                      seen[name] = 1; print name
                      n = split(dep[name], group, /, */)
                      for (i = 1; i <= n; i++) {
                          m = split(group[i], alt, / *\| */)
                          for (j = 1; j <= m; j++) {
                              sub(/[ :(].*/, "", alt[j])
                              if (alt[j] in dep || alt[j] in by) { stack[++top] = alt[j]; break }
                          }
                      }
                  }
            }'
}

# Put the wanted modules of kernel $2, found under $1, into tree $3.
add_modules() {
    local from=$1 version=$2 tree=$3 name
    local out=$tree/usr/lib/modules/$version base=$work/base
    mkdir -p "$out" "$base/lib/modules"
    ln -sfn "$from" "$base/lib/modules/$version"
    cp "$from"/modules.{builtin,order,builtin.modinfo} "$out/"
    for name in $image_modules; do
        modprobe -d "$base" -S "$version" --show-depends "$name" 2>/dev/null || true
    done | sed -n "s,^insmod .*lib/modules/$version/\([^ ]*\).*,\1,p" | sort -u >"$work/modules"
    (cd "$from" && xargs -r -a "$work/modules" cp --parents -t "$out")
    depmod -b "$tree" "$version"
}

image() {
    local uml stamp work tree t0 p
    uml=$(ls -d /usr/lib/uml/modules/* 2>/dev/null | tail -n 1) || true
    [ -n "$uml" ] || die "no user-mode kernel: run '$0 deps' first"
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    [ -f "$cache/key" ] || ssh-keygen -q -t ed25519 -N '' -C hvlab -f "$cache/key"
    [ -f "$cache/hostkey" ] || ssh-keygen -q -t ed25519 -N '' -C hvlab -f "$cache/hostkey"
    # shellcheck disable=SC2046
    stamp=$( (cat "${BASH_SOURCE[0]}" "$here"/guest/* "$cache/key.pub"; echo "$uml"
              dpkg-query -W $(closure "$image_packages" "$image_without") 2>/dev/null) | sha256sum | cut -c1-16)
    if [ "${1:-}" != -f ] && [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ]; then flock -u 9; return; fi

    t0=$(now)
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    tree=$work/tree
    mkdir -p "$tree"
    for p in $(closure "$image_packages" "$image_without"); do
        dpkg-query -L "$p" 2>/dev/null || dpkg-query -L "$p:amd64"
    done | sed -E 's,^/(bin|sbin|lib|lib64)/,/usr/\1/,' | sort -u |
        grep -vE '^/usr/share/(doc|man|info|locale|lintian|bash-completion|i18n|perl5|bug)(/|$)|^/usr/include|/\.$|^/(boot|proc|sys|dev|run|tmp)(/|$)|^/(usr/)?lib/udev/hwdb|/python3/' |
        while read -r p; do if [ -e "$p" ] || [ -L "$p" ]; then echo "${p#/}"; fi; done >"$work/files"
    tar -C / --no-recursion -cf - -T "$work/files" | tar -C "$tree" -xpf -

    # Links of the alternatives system are in no package.
    ln -sfn dash "$tree/usr/bin/sh"
    ln -sfn mawk "$tree/usr/bin/awk"
    cp /bin/busybox "$tree/usr/bin/busybox"
    for p in init poweroff reboot halt; do ln -sfn ../bin/busybox "$tree/usr/sbin/$p"; done
    rm -rf "$tree"/etc/ssh/ssh_host* "$tree"/etc/lvm/{archive,backup} "$tree"/root
    mkdir -p "$tree"/{dev,proc,sys,run,mnt,var/log,usr/local/sbin,rhev/data-center/mnt/blockSD}
    install -d -m 1777 "$tree/tmp"
    install -d -m 700 "$tree/root" "$tree/root/.ssh"
    install -m 600 "$cache/hostkey" "$tree/etc/ssh/ssh_host_ed25519_key"
    install -m 600 "$cache/key.pub" "$tree/root/.ssh/authorized_keys"
    install -m 755 "$here/guest/rc.lab" "$tree/etc/rc.lab"
    install -m 755 "$here/guest/lab-sd" "$tree/usr/local/sbin/lab-sd"
    cat >"$tree/etc/inittab" <<'C'
::sysinit:/etc/rc.lab
::respawn:/usr/sbin/sshd -D -e
C
    # curve25519 alone: the default post-quantum exchange doubles the login time.
    cat >"$tree/etc/ssh/sshd_config" <<'C'
HostKey /etc/ssh/ssh_host_ed25519_key
KexAlgorithms curve25519-sha256
PermitRootLogin yes
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
C
    # The accounts of an oVirt host that own storage.
    cat >"$tree/etc/passwd" <<'C'
root:x:0:0:root:/root:/bin/bash
sshd:x:74:74:sshd:/run/sshd:/usr/sbin/nologin
vdsm:x:36:36:Node Virtualization Manager:/var/lib/vdsm:/bin/bash
qemu:x:107:107:qemu:/:/usr/sbin/nologin
sanlock:x:179:179:sanlock:/run/sanlock:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
C
    grep -vE '^(kvm|qemu|sanlock|vdsm|sshd):' /etc/group >"$tree/etc/group"
    printf 'kvm:x:36:qemu,sanlock\nqemu:x:107:vdsm,sanlock\nsanlock:x:179:vdsm\nsshd:x:74:\n' >>"$tree/etc/group"
    printf '%s:*:19000:0:99999:7:::\n' root vdsm qemu sanlock >"$tree/etc/shadow"
    chmod 600 "$tree/etc/shadow"
    # As vdsm's 12-vdsm-lvm.rules.
    cat >"$tree/etc/udev/rules.d/90-lab-storage.rules" <<'C'
ACTION!="add|change", GOTO="end"
ENV{DM_VG_NAME}!="????????-????-????-????-????????????", GOTO="end"
ENV{DM_LV_NAME}=="????????-????-????-????-????????????", RUN+="/usr/bin/chown 36:107 $env{DEVNAME}"
ENV{DM_LV_NAME}=="metadata|inbox|outbox", OWNER:="vdsm", GROUP:="qemu", MODE:="0600"
ENV{DM_LV_NAME}=="ids|leases|xleases", OWNER:="vdsm", GROUP:="sanlock", MODE:="0660"
LABEL="end"
C
    add_modules "$uml" "${uml##*/}" "$tree"
    truncate -s 1G "$work/root.img"
    mkfs.ext4 -q -F -O ^has_journal -m 0 -L hvlab -d "$tree" "$work/root.img"
    mv "$work/root.img" "$cache/"
    echo "$stamp" >"$cache/stamp"
    rm -rf "$work"
    trap - EXIT
    flock -u 9
    echo "image: $(du -m "$cache/root.img" | cut -f1) MB on disk, built in $(took "$t0")"
}

state() { cat "$run/$1/$2" 2>/dev/null || die "no host '$1' is up"; }
wwid() { echo "3600140$(basename "$1" | sha256sum | cut -c1-26)"; }
detach() { setsid "$@" </dev/null >>"$dir/log" 2>&1 9>&- & }

up() {
    local name=$1 addr='' lvm=filter mem=512 port='' luns=() dir t0 o
    shift
    [[ $name =~ ^[a-z0-9]{1,12}$ ]] || die "a name is 1 to 12 lower-case letters and digits"
    OPTIND=1
    while getopts 'a:l:c:m:p:' o; do
        case $o in
        a) addr=$OPTARG ;; l) luns+=("$OPTARG") ;; c) lvm=$OPTARG ;;
        m) mem=$OPTARG ;; p) port=$OPTARG ;; *) usage ;;
        esac
    done
    dir=$run/$name
    [ ! -e "$dir" ] || die "'$name' is there already"
    [ -n "$addr" ] || usage
    t0=$(now)
    image
    mkdir -p "$dir"
    net_up
    local ip=$net.$addr l file id wwids='' i=0 disks=() cpus=() c mac
    for l in "${luns[@]}"; do
        file=$(realpath "${l%%:*}") id=${l#*:} i=$((i + 1))
        [ "$id" != "$l" ] || id=$(wwid "$file")
        wwids+=${wwids:+,}$id
        disks+=("ubd${i}cd=$file") # c: shared, d: never taken for a COW file
    done
    mac=52:54:00:$(sha256sum <<<"$name" | sed 's/\(..\)\(..\)\(..\).*/\1:\2:\3/')
    ip -n "$ns" tuntap add mode tap name "v-$name"
    ip -n "$ns" link set "v-$name" master br0 up
    ip -n "$ns" neigh flush to "$ip" # a stale entry costs 30 s
    # One CPU per guest: its kernel and its processes alternate, and on one CPU they run twice as fast.
    for ((c = 0; c < $(nproc --all); c++)); do
        if taskset -c $c true 2>/dev/null; then cpus+=("$c"); fi
    done
    detach ip netns exec "$ns" taskset -c "${cpus[addr % ${#cpus[@]}]}" linux.uml "mem=${mem}M" "umid=$ns-$name" "uml_dir=$dir/" \
        "ubd0=$dir/root.cow,$cache/root.img" "${disks[@]}" root=/dev/ubda rw loglevel=4 \
        "vec0:transport=tap,ifname=v-$name,depth=128,gro=1,mac=$mac" con=null con0=null,fd:1 ssl=null \
        "hv.name=$name" "hv.ip=$ip/24" "hv.gw=$net.1" "hv.lvm=$lvm" "hv.luns=$wwids"
    echo $! >"$dir/pid"
    echo "$ip 22" >"$dir/addr"
    local key; key=$(cut -d' ' -f1,2 "$cache/hostkey.pub")
    echo "$ip $key" >"$dir/known_hosts"
    if [ -n "$port" ]; then
        echo "[127.0.0.1]:$port $key" >>"$dir/known_hosts"
        detach socat "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr" "EXEC:ip netns exec $ns socat STDIO TCP\\:$ip\\:22"
        echo $! >"$dir/forward"
    fi
    # /dev/tcp costs nothing; each refused ssh login would cost the booting guest CPU time.
    until ip netns exec "$ns" timeout 2 bash -c "exec 3<>/dev/tcp/$ip/22 && read -r -t 2 banner <&3 && [[ \$banner == SSH* ]]" 2>/dev/null; do
        kill -0 "$(cat "$dir/pid")" 2>/dev/null || { tail -n 5 "$dir/log" >&2; down "$name"; die "'$name' did not start"; }
        [ $(( $(now) - t0 )) -lt 120000000000 ] || die "'$name' has no sshd after 120 s: see $dir/log"
        sleep 0.1
    done
    echo "$name: at $ip port 22 after $(took "$t0")"
}

hssh() {
    local name=$1 h p
    shift
    read -r h p < <(state "$name" addr) || die "no host '$name' is up"
    exec ip netns exec "$ns" ssh -i "$cache/key" -p "$p" -o BatchMode=yes -o ConnectTimeout=10 -o LogLevel=ERROR \
        -o ServerAliveInterval=30 -o StrictHostKeyChecking=yes -o UserKnownHostsFile="$run/$name/known_hosts" "root@$h" "$@"
}

down() {
    local name f n
    if [ "$1" = all ]; then
        for f in "$run"/*/pid; do [ -e "$f" ] && down "$(basename "$(dirname "$f")")"; done
        ip netns list | grep -qw "^$ns" && ip netns del "$ns"
        rmdir "$run" 2>/dev/null || true
        return 0
    fi
    name=$1
    [ -d "$run/$name" ] || die "no host '$name' is up"
    timeout 5 "$0" ssh "$name" sync 2>/dev/null || true
    for f in pid forward; do
        [ -e "$run/$name/$f" ] || continue
        n=$(cat "$run/$name/$f")
        kill -KILL -- "-$n" 2>/dev/null || true
        while kill -0 -- "-$n" 2>/dev/null; do sleep 0.05; done
    done
    ip -n "$ns" link del "v-$name" 2>/dev/null || true
    rm -rf --one-file-system "${run:?}/$name"
}

[ $# -gt 0 ] || usage
command=$1
shift
case $command in
deps) deps ;;
image) image "$@" ;;
up) [ $# -ge 1 ] || usage; up "$@" ;;
ssh) [ $# -ge 1 ] || usage; hssh "$@" ;;
env)
    read -r h p < <(state "$1" addr)
    printf 'HOST=%s\nPORT=%s\nKEY=%s\nKNOWN_HOSTS=%s\n' "$h" "$p" "$cache/key" "$run/$1/known_hosts" ;;
wwid) wwid "$1" ;;
down) [ $# = 1 ] || usage; down "$1" ;;
*) usage ;;
esac
