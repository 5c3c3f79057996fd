#!/bin/sh
# Many callers of the driver at once, for as long as it is told.
#
#   storm.sh SECONDS
#
# Through the device and through reports of their own and shared ones; some are stopped and go on in the middle of a
# call, some are killed, and the modules are unloaded under their feet. One line for each caller, and one at the end.
seconds=$1
mkdir -p /tmp/storm && cd /tmp/storm || exit 1
read -r up _ </proc/uptime
end=$((${up%.*} + seconds))

# Whether there is time left.
on() {
	read -r up _ </proc/uptime
	[ "${up%.*}" -lt "$end" ]
}

tsm-torment device "$seconds" >device-1 &
tsm-torment device "$seconds" >device-2 &
stopped=$!
tsm-torment own a "$seconds" >own-1 &
tsm-torment own b "$seconds" >own-2 &
stopped="$stopped $!"
tsm-torment shared c "$seconds" >shared-1 &
tsm-torment shared c "$seconds" >shared-2 &
stopped="$stopped $!"

# Signals in the middle of calls, at other moments each time.
(
	count=0 pause=1000
	while on; do
		for process in $stopped; do
			kill -STOP "$process" 2>/dev/null && usleep 2000 && kill -CONT "$process" && count=$((count + 1))
			usleep $pause
			pause=$(((pause * 7 + 3000) % 50000))
		done
	done
	echo "done=$count" >signals
) &

# Callers that die in the middle.
(
	count=0 pause=20000
	while on; do
		tsm-torment device 60 >/dev/null &
		one=$!
		tsm-torment own "dying-$count" 60 >/dev/null &
		other=$!
		usleep $pause
		kill -9 $one $other
		wait $one $other
		rmdir "/sys/kernel/config/tsm/report/dying-$count" 2>/dev/null
		count=$((count + 1)) pause=$(((pause * 5 + 7000) % 200000))
	done
	echo "done=$count" >deaths
) 2>/dev/null &

# The provider goes and comes back. The device is open all the time, so that its module can never go.
exec 5<>/dev/dolmen
count=0
while on; do
	usleep 300000
	busybox rmmod dolmen_tsm || echo "dolmen_tsm cannot be unloaded" >>faults
	if busybox rmmod dolmen 2>/dev/null; then
		echo "the device's module went while it was open" >>faults
	fi
	# The kernel takes a provider again once nobody has a report of the old one left.
	tries=0
	until insmod /lib/dolmen_tsm.ko 2>/dev/null; do
		tries=$((tries + 1))
		# What a caller left that died; it may have been in use when it was first removed.
		rmdir /sys/kernel/config/tsm/report/dying-* 2>/dev/null
		if [ $tries = 500 ]; then
			echo "dolmen_tsm cannot be loaded again" >>faults
			break
		fi
		usleep 20000
	done
	count=$((count + 1))
done
exec 5>&-
echo "done=$count" >unloads
wait
for file in *; do
	echo "storm: $file $(cat "$file")"
done
echo "storm: over"
