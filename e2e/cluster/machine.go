// The machine of a node: namespaces of its own for processes, mounts and network.
//
// A kubelet leaves much behind: mounts, interfaces, firewall rules, shims and containers that outlive it.
// Here the kernel tidies up: when the first process of a process namespace ends, every other one in it is
// killed, and mounts and network go with the last. Only control groups and the folder are left, and those
// are removed by the outer process, which does so when its standard input ends.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"time"
)

// The address behind which nothing is: the default route leads there, so that nothing leaves the machine.
const nowhere = "10.250.0.1/24"

// machine starts the namespaces, connects them with the host by a pair of interfaces, prints
// `machine PID` (of the first process inside) and waits for the end of its standard input.
//
// Arguments: folder, name (of the control group and of the host's interface), the host's and the
// machine's address, each with prefix length.
func machine(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: machine FOLDER NAME HOST-ADDRESS ADDRESS")
	}
	folder, name, outside, inside := args[0], args[1], args[2], args[3]
	groups, err := makeControlGroups(name)
	// Deferred first, these come last, when nothing runs any more.
	defer os.RemoveAll(folder)
	defer removeControlGroups(groups)
	if err != nil {
		return err
	}
	// A parent death signal belongs to the thread that started the child.
	runtime.LockOSThread()
	first := exec.Command("/proc/self/exe", "machine-inside", folder, inside)
	first.Stderr = os.Stderr
	first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true,
	}
	tell, err := first.StdinPipe()
	if err != nil {
		return err
	}
	said, err := first.StdoutPipe()
	if err != nil {
		return err
	}
	if err := first.Start(); err != nil {
		return err
	}
	defer func() {
		_ = first.Process.Kill()
		_ = first.Wait()
	}()
	pid := fmt.Sprint(first.Process.Pid)
	for _, command := range []string{
		"link add " + name + " type veth peer name eth0 netns " + pid,
		"address add " + outside + " dev " + name,
		"link set " + name + " up",
	} {
		if err := ip(command); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(tell, "connected"); err != nil {
		return err
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("the machine did not start: %q, %v", line, err)
	}
	fmt.Println("machine", pid)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// machineInside is the first process of the namespaces: it sets them up and waits for orphans.
func machineInside(args []string) error {
	folder, address := args[0], args[1]
	// Mounts come in from the host and do not go out; inside they reach containers.
	for _, flag := range []uintptr{syscall.MS_SLAVE, syscall.MS_SHARED} {
		if err := syscall.Mount("", "/", "", flag|syscall.MS_REC, ""); err != nil {
			return fmt.Errorf("set how mounts spread: %w", err)
		}
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := hideTunables(folder); err != nil {
		return err
	}
	// Places that programs of a node have in their code.
	for _, place := range []string{"/run", "/var/log"} {
		if err := syscall.Mount("tmpfs", place, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", place, err)
		}
	}
	for _, place := range []string{"/var/lib/cni", "/var/lib/kubelet"} {
		own := filepath.Join(folder, filepath.Base(place))
		for _, path := range []string{place, own} {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
		}
		if err := syscall.Mount(own, place, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", place, err)
		}
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	for _, command := range []string{
		"link set lo up",
		"address add " + address + " dev eth0",
		"link set eth0 up",
		"link add node0 type bridge",
		"address add " + nowhere + " dev node0",
		"link set node0 up",
		"route add default dev node0",
	} {
		if err := ip(command); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	fmt.Println("ready")
	for range children {
		for {
			pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 {
				break
			}
		}
	}
	return nil
}

// hideTunables puts files over what the kubelet sets for the whole kernel, whose users have not asked for it.
func hideTunables(folder string) error {
	for name, wanted := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		own := filepath.Join(folder, "tunables", name)
		if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(own, []byte(wanted), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(own, filepath.Join("/proc/sys", name), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}

func ip(command string) error {
	if said, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", command, err, said)
	}
	return nil
}

// makeControlGroups makes the node's root in every hierarchy.
func makeControlGroups(name string) ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var groups []string
	for _, line := range strings.Split(string(mounts), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 3 || (fields[2] != "cgroup" && fields[2] != "cgroup2") {
			continue
		}
		group := filepath.Join(fields[1], name)
		if err := os.MkdirAll(group, 0o755); err != nil {
			return groups, err
		}
		groups = append(groups, group)
		// A new cpuset of version 1 has neither processors nor memory.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := os.ReadFile(filepath.Join(fields[1], file)); err == nil {
				_ = os.WriteFile(filepath.Join(group, file), text, 0)
			}
		}
	}
	return groups, nil
}

// removeControlGroups removes groups whose processes were killed and may not have ended yet.
func removeControlGroups(groups []string) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		left := false
		for _, group := range groups {
			var folders []string
			_ = filepath.WalkDir(group, func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					folders = append(folders, path)
				}
				return nil
			})
			sort.Sort(sort.Reverse(sort.StringSlice(folders)))
			for _, folder := range folders {
				// Not os.Remove: it tries to unlink first.
				left = syscall.Rmdir(folder) != nil || left
			}
		}
		if !left {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
