#!/bin/sh
# First program of the demo's guest: loads the driver and gives a shell on the console.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
export PATH=/bin HOME=/root PS1='guest# '
cd /root
insmod /lib/dolmen.ko || echo "guest: the driver did not load"
read -r uptime _ </proc/uptime
echo "guest: ready kernel=$(uname -r) uptime=$uptime"
# A session of its own, so that the shell has a controlling terminal and Ctrl-C works.
setsid cttyhack sh
poweroff -f
