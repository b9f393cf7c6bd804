# Sourced by hvlab.sh and peers.sh: the bridge in the network namespace $ns on which guests and
# hosts meet, with this machine at $net.1.

net_up() {
    ip netns list | grep -qw "^$ns" && return
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    ip -n "$ns" link add br0 type bridge
    ip -n "$ns" addr add "$net.1/24" dev br0
    ip -n "$ns" link set br0 up
}
