#!/bin/sh
# A load for every processor of a guest, for as long as the guest's own clock says.
#
#   load.sh SECONDS WORD SUM
#
# WORD times 200000 lines is the file whose SHA-256 is SUM. Each kind of work counts what it has done and writes a
# line to `faults` about everything that is not as it must be. The last line of the output is `load: done` and the
# counts.
seconds=$1 word=$2 sum=$3
processors=$(nproc)
mkdir -p /load && mount -t tmpfs -o size=160m load /load && cd /load && mkdir bin || exit 1
busybox --install -s bin
PATH=$PATH:/load/bin
yes "$word" | head -n 200000 >data
: >faults
read -r up _ </proc/uptime
end=$((${up%.*} + seconds))

# Whether there is time left.
on() {
	read -r up _ </proc/uptime
	[ "${up%.*}" -lt "$end" ]
}

fault() {
	echo "$*" >>faults
}

# Sums over memory: each on its own processor, which thereby is never idle.
sums() {
	n=0
	while on; do
		[ "$(sha256sum <data)" = "$sum  -" ] || fault "sum $1 is wrong"
		n=$((n + 1))
		echo $n >"count.sums.$1"
	done
}

# New processes, new programs, their output and their exit status.
forks() {
	n=0
	while on; do
		n=$((n + 1))
		[ "$(/bin/busybox echo $n | /bin/busybox sed s/^/x/)" = x$n ] || fault "forks $1 lost $n"
		/bin/busybox sh -c 'exit 7'
		[ $? = 7 ] || fault "forks $1: another status"
		echo $n >"count.forks.$1"
	done
}

# Bytes through three processors.
pipes() {
	n=0
	while on; do
		count=$(taskset $1 cat data | taskset $2 cat | taskset $3 wc -c)
		[ "$count" = "$size" ] || fault "pipe $1 $2 $3 carried $count bytes"
		n=$((n + 1))
		echo $n >"count.pipes.$1"
	done
}

# One byte at a time to another processor and back: wakes both for each.
pings() {
	mkfifo "to.$1" "from.$1"
	taskset $2 sh -c 'while read -r x; do echo "$x"; done' <"to.$1" >"from.$1" &
	exec 3>"to.$1" 4<"from.$1"
	n=0
	while on; do
		echo $n >&3
		read -r back <&4
		[ "$back" = $n ] || fault "ping $1 came back as $back"
		n=$((n + 1))
		echo $n >"count.pings.$1"
	done
	exec 3>&- 4<&-
	wait
}

# Sleepers: never awake too early, and how late at most, in hundredths of a second.
sleeps() {
	n=0 worst=0
	while on; do
		read -r up _ </proc/uptime
		usleep $(($2 * 10000))
		read -r now _ </proc/uptime
		late=$((${now%.*}${now#*.} - ${up%.*}${up#*.} - $2))
		# Both readings are rounded down.
		[ $late -ge -1 ] || fault "sleep $1 ended $late hundredths early"
		[ $late -le $worst ] || worst=$late
		n=$((n + 1))
		echo $n >"count.sleeps.$1"
		echo $worst >"late.$1"
	done
}

# Files written, copied, compared and removed.
files() {
	n=0
	while on; do
		cp data "copy.$1" && cmp data "copy.$1" || fault "copy $1 differs"
		dd if="copy.$1" of="again.$1" bs=4k conv=fsync 2>dd.$1 || fault "$(cat dd.$1)"
		cmp data "again.$1" || fault "copy $1 differs when written in pieces"
		rm "copy.$1" "again.$1"
		n=$((n + 1))
		echo $n >"count.files.$1"
	done
}

# All counts of one kind together, and how many of its kind there are.
total() {
	sum=0
	for file in count."$1".*; do
		read -r n <"$file" && sum=$((sum + n))
	done
	echo "$1=$sum"
}

report() {
	worst=0
	for file in late.*; do
		read -r n <"$file"
		[ "${n:-0}" -le $worst ] || worst=$n
	done
	echo "$1 $(for kind in sums forks pipes pings sleeps files; do total $kind; done | tr '\n' ' ')" \
		"late=$worst faults=$(wc -l <faults)"
}

size=$(wc -c <data)
cpu=0
while [ $cpu -lt "$processors" ]; do
	one=$(printf %x $((1 << cpu))) next=$(printf %x $((1 << (cpu + 1) % processors)))
	third=$(printf %x $((1 << (cpu + 2) % processors)))
	(taskset -p $one $(exec sh -c 'echo $PPID') >/dev/null; sums $cpu) &
	pipes $one $next $third &
	(taskset -p $one $(exec sh -c 'echo $PPID') >/dev/null; pings $cpu $next) &
	sleeps $cpu $((cpu * 7 + 1)) &
	cpu=$((cpu + 1))
done
forks 0 &
forks 1 &
files 0 &
files 1 &
while on; do
	sleep 5
	on || break
	report "load: $((seconds - end + ${up%.*})) s of $seconds:"
done
wait
sort faults | uniq | head -n 5
report "load: done"
