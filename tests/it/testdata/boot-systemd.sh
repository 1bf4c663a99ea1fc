#!/bin/sh
# First process of a machine for tests, in namespaces of its own for mounts, processes, names, IPC and control
# groups; the network is the caller's. Makes a root of it whose changes stay in memory, and becomes systemd.
#
#   boot-systemd.sh FOLDER      FOLDER is /run/test there; its folder `room` is used up
set -e
folder=$1
room=$folder/room
mount --make-rprivate /
mount -t tmpfs tmpfs "$room"
mkdir "$room/changed" "$room/work" "$room/root"
mount -t overlay -o "lowerdir=/,upperdir=$room/changed,workdir=$room/work" overlay "$room/root"
cd "$room/root"

mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for place in run tmp dev; do
    mount -t tmpfs -o mode=755 tmpfs "$place"
done
chmod 1777 tmp
mkdir run/test dev/shm dev/pts dev/mqueue dev/hugepages
mount --bind "$folder" run/test
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done

# Of this machine's own units nothing is started but what a unit under test asks for.
for place in etc/systemd/system lib/systemd/system lib/systemd/system-generators; do
    mount -t tmpfs -o mode=755 tmpfs "$place"
done
for target in sysinit basic shutdown umount final multi-user network-online nss-lookup; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" >"lib/systemd/system/$target.target"
done
printf '[Unit]\nDescription=Test\nRequires=basic.target\nAfter=basic.target\n' >lib/systemd/system/default.target
# There is no journal.
mkdir lib/systemd/system/service.d
printf '[Service]\nStandardOutput=append:/run/test/%%p.log\nStandardError=append:/run/test/%%p.log\n' \
    >lib/systemd/system/service.d/log.conf

mkdir before
pivot_root . before
umount -l /before
rmdir /before
# As it is at a boot; systemd leaves it to whoever made the container.
mount --make-rshared /
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --log-target=null --show-status=no
