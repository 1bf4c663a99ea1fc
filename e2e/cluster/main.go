// Command tidegate-test-cluster is a whole Kubernetes in one program: the first argument names the part.
//
// Tests start the parts as processes of their own (see e2e/support in the repository), so that each can be
// stopped, killed and started again. A server ends when its standard input ends: the test holds the other
// end of that pipe, so nothing outlives a test run, even one that was killed with SIGKILL. A parent death
// signal would not do: it is sent when the *thread* that started the child ends, and a test is a thread.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

const usage = "usage: tidegate-test-cluster etcd|kube-apiserver|kube-controller-manager|kube-scheduler|" +
	"kubelet|kube-proxy|kubectl|machine|names [OPTIONS]"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	part := os.Args[1]
	// Every part reads its options, and some their name, from here.
	os.Args = append([]string{part}, os.Args[2:]...)
	switch part {
	case "etcd":
		endWithInput()
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		serve(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		serve(controllermanager.NewControllerManagerCommand())
	case "kube-scheduler":
		serve(scheduler.NewSchedulerCommand())
	case "kubelet":
		serve(kubelet.NewKubeletCommand(context.Background()))
	case "kube-proxy":
		serve(proxy.NewProxyCommand())
	case "kubectl":
		logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	case "machine":
		finish(machine(os.Args[1:]))
	case "machine-inside":
		finish(machineInside(os.Args[1:]))
	case "names":
		endWithInput()
		finish(serveNames(os.Args[1:]))
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
}

func serve(command *cobra.Command) {
	endWithInput()
	os.Exit(cli.Run(command))
}

func finish(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// endWithInput ends this process when nobody holds the other end of its standard input any more.
func endWithInput() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
}
