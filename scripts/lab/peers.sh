#!/bin/bash
# Hosts without a kernel of their own, and real storage servers on them: sshd, glusterd and
# nfs-ganesha in network, mount, PID and UTS namespaces, on the bridge of hvlab.sh (same
# HVLAB_NS), so that guests and hosts reach each other and a cable can be pulled.
# The kernel, /usr and /tmp are the machine's; the daemons are the real ones.
set -euo pipefail

usage() {
    cat <<'U'
usage: peers.sh COMMAND ...        (root; Debian)

  up NAME -a N                     start a host at address NET.N and wait for its sshd; it has its
                                   own /rhev and /srv and private changes to /etc, /var, /root
  tree NAME                        the folder on this machine that is the host's / (rhev, srv)
  ssh NAME [COMMAND...]            run a command as root in the host
  env NAME                         HOST, PORT, KEY, HOSTKEY of the host
  link NAME up|down                plug or pull the network cable, silently
  gluster NAME VOLUME [BRICKS]     start glusterd and a sharded volume, replicated if BRICKS is
                                   more than 1; mount -t glusterfs ADDR:/VOLUME DIR
  nfs NAME EXPORT                  export /srv of the host as ADDR:EXPORT, NFS 4, root squashed
  down NAME|all                    stop one host with its servers, or all and the namespace

environment: HVLAB_CACHE (target/hvlab of this project)  HVLAB_RUN (/tmp/hvlab)
             HVLAB_NS (hvlab)  HVLAB_NET (10.77.0)
U
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HVLAB_CACHE:-$here/../../target/hvlab}
run=${HVLAB_RUN:-/tmp/hvlab}/peers
ns=${HVLAB_NS:-hvlab}
net=${HVLAB_NET:-10.77.0}
. "$here/net.sh"

die() { echo "peers: $*" >&2; exit 1; }
addr() { cat "$run/$1/addr" 2>/dev/null || die "no host '$1' is up"; }

# The keys are those of hvlab.sh, which makes them in the same way.
keys() {
    mkdir -p "$cache"
    cache=$(realpath "$cache")
    exec 9>"$cache/lock"
    flock 9
    local k
    for k in key hostkey; do
        [ -f "$cache/$k" ] || ssh-keygen -q -t ed25519 -N '' -C hvlab -f "$cache/$k"
    done
    exec 9>&-
}

up() {
    local name=$1 ip dir n
    [[ $name =~ ^[a-z0-9]{1,8}$ ]] || die "a name is 1 to 8 lower-case letters and digits"
    [ "${2:-}" = -a ] && [ $# = 3 ] || usage
    ip=$net.$3
    dir=$run/$name
    [ ! -e "$dir" ] || die "'$name' is there already"
    keys
    net_up
    mkdir -p /rhev /srv "$dir"/{rhev/data-center/mnt,srv,upper/{etc,var,root},work/{etc,var,root}}
    dir=$(realpath "$dir")
    ip netns add "$ns-$name"
    ip -n "$ns-$name" link set lo up
    ip -n "$ns" link add "v-$name" type veth peer name eth0 netns "$ns-$name"
    ip -n "$ns" link set "v-$name" master br0 up
    ip -n "$ns-$name" addr add "$ip/24" dev eth0
    ip -n "$ns-$name" link set eth0 up
    # ClientAlive: the session of a client behind a cut cable ends after 6 s.
    cat >"$dir/sshd_config" <<C
ListenAddress $ip
HostKey $cache/hostkey
AuthorizedKeysFile $cache/key.pub .ssh/authorized_keys
StrictModes no
PermitRootLogin yes
UsePAM no
UseDNS no
PidFile none
MaxStartups 100
MaxSessions 100
ClientAliveInterval 2
ClientAliveCountMax 3
Subsystem sftp internal-sftp
C
    cat >"$dir/start" <<C
set -e
hostname $name
for d in etc var root; do
    mount -t overlay -o "lowerdir=/\$d,upperdir=$dir/upper/\$d,workdir=$dir/work/\$d" overlay /\$d
done
for d in rhev srv; do mount --bind $dir/\$d /\$d; done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/lock
echo "$ip $name" >>/etc/hosts
exec /usr/sbin/sshd -D -e -f $dir/sshd_config
C
    setsid nsenter --net="/run/netns/$ns-$name" unshare --mount --uts --pid --fork --kill-child --mount-proc \
        --propagation private bash "$dir/start" </dev/null >"$dir/log" 2>&1 &
    echo $! >"$dir/pid"
    echo "$ip" >"$dir/addr"
    echo "$ip $(cut -d' ' -f1,2 "$cache/hostkey.pub")" >"$dir/known_hosts"
    for ((n = 0; n < 200; n++)); do
        nsenter --net="/run/netns/$ns" timeout 2 bash -c "exec 3<>/dev/tcp/$ip/22" 2>/dev/null && return
        kill -0 "$(cat "$dir/pid")" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$dir/log" >&2
    down "$name"
    die "'$name' did not start"
}

hssh() {
    local name=$1 ip
    shift
    ip=$(addr "$name")
    nsenter --net="/run/netns/$ns" ssh -i "$cache/key" -o BatchMode=yes -o ConnectTimeout=10 -o LogLevel=ERROR \
        -o StrictHostKeyChecking=yes -o UserKnownHostsFile="$run/$name/known_hosts" "root@$ip" "$@"
}

gluster() {
    local ip; ip=$(addr "$1")
    hssh "$1" 'bash -seu' >&2 <<C
mkdir -p /run/gluster /var/log/glusterfs
glusterd --pid-file /run/glusterd.pid
for i in \$(seq 100); do timeout 5 gluster --mode=script peer status >/dev/null 2>&1 && break; sleep 0.2; done
bricks=
for i in \$(seq ${3:-1}); do mkdir -p /srv/$2/\$i; bricks="\$bricks $ip:/srv/$2/\$i"; done
g() { timeout 60 gluster --mode=script volume "\$@"; }
g create $2 $([ "${3:-1}" -gt 1 ] && echo "replica $3") \$bricks force
for o in storage.owner-uid=36 storage.owner-gid=36 features.shard=on features.shard-block-size=4MB \
    network.remote-dio=off performance.strict-o-direct=on; do g set $2 \${o%=*} \${o#*=} >/dev/null; done
g start $2
C
}

# The engine of a test writes into /srv behind the server, so that may not remember attributes:
# by default it tells sizes that are a minute old, which no server does whose writers all come
# by NFS. The cache of the client, which is what hosts have, is left as it is by default.
nfs() {
    local ip; ip=$(addr "$1")
    hssh "$1" 'bash -seu' >&2 <<C
cat >/run/ganesha.conf <<G
NFS_CORE_PARAM { Protocols = 4; Bind_addr = $ip; Enable_NLM = false; Enable_RQUOTA = false; }
NFSv4 { RecoveryBackend = fs; Graceless = true; }
EXPORT { Export_Id = 1; Path = /srv; Pseudo = $2; Access_Type = RW; Squash = Root_Squash; SecType = sys;
 Attr_Expiration_Time = 0; FSAL { Name = VFS; } }
LOG { Default_Log_Level = WARN; }
G
chown 36:36 /srv
mkdir -p /run/ganesha /var/lib/nfs/ganesha
ganesha.nfsd -f /run/ganesha.conf -L /var/log/ganesha.log -p /run/ganesha.pid
for i in \$(seq 150); do ss -ltn | grep -q :2049 && exit; sleep 0.1; done
tail /var/log/ganesha.log; exit 1
C
}

down() {
    local name n
    if [ "$1" = all ]; then
        for n in "$run"/*/pid; do [ ! -e "$n" ] || down "$(basename "$(dirname "$n")")"; done
        if ip netns list | grep -qw "^$ns"; then ip netns del "$ns"; fi
        rmdir "$run" "${run%/*}" 2>/dev/null || true
        return 0
    fi
    name=$1
    [ -d "$run/$name" ] || die "no host '$name' is up"
    n=$(cat "$run/$name/pid")
    # The first process of the PID namespace takes all others along.
    kill -KILL -- "-$n" 2>/dev/null || true
    while kill -0 -- "-$n" 2>/dev/null; do sleep 0.05; done
    ip -n "$ns" link del "v-$name" 2>/dev/null || true
    if ip netns list | grep -qw "^$ns-$name"; then ip netns del "$ns-$name"; fi
    rm -rf --one-file-system "${run:?}/$name"
}

[ $# -ge 2 ] || usage
command=$1
shift
case $command in
up) up "$@" ;;
tree) addr "$1" >/dev/null; realpath "$run/$1" ;;
ssh) hssh "$@" ;;
env)
    ip=$(addr "$1")
    printf 'HOST=%s\nPORT=22\nKEY=%s\nHOSTKEY=%s\n' "$ip" "$(realpath "$cache/key")" "$(cut -d' ' -f1,2 "$cache/hostkey.pub")" ;;
link) # out of the bridge: no side is told
    addr "$1" >/dev/null
    case ${2:-} in up) ip -n "$ns" link set "v-$1" master br0 ;; down) ip -n "$ns" link set "v-$1" nomaster ;; *) usage ;; esac ;;
gluster) gluster "$@" ;;
nfs) [ $# = 2 ] || usage; nfs "$@" ;;
down) down "$@" ;;
*) usage ;;
esac
