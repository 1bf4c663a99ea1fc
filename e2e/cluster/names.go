// The name server of a node: what pods ask for Services, and what the world would answer for hostnames.
//
// It watches Services and EndpointSlices. Names of the cluster are answered as CoreDNS does it: the address of
// the Service, of each endpoint where it has none. Every other name belongs to the Service whose annotation
// external-dns.alpha.kubernetes.io/hostname says so, and leads to the address by which clients outside reach
// that one: tests publish a hostname as people do who run external-dns. There is no name beyond these, no IPv6
// and no TCP.
package main

import (
	"fmt"
	"net"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	clusterZone        = "svc.cluster.local"
	hostnameAnnotation = "external-dns.alpha.kubernetes.io/hostname"
	// Short, because tests change what names lead to.
	lifetime = 1
)

type names struct {
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
}

// serveNames prints `names` when it answers and goes on until the process ends.
//
// Arguments: kubeconfig, address with port.
func serveNames(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: names KUBECONFIG ADDRESS")
	}
	config, err := clientcmd.BuildConfigFromFlags("", args[0])
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	socket, err := net.ListenPacket("udp", args[1])
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	server := names{
		services: factory.Core().V1().Services().Lister(),
		slices:   factory.Discovery().V1().EndpointSlices().Lister(),
	}
	forever := make(chan struct{})
	factory.Start(forever)
	factory.WaitForCacheSync(forever)
	fmt.Println("names")
	buffer := make([]byte, 4096)
	for {
		length, peer, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if answer, err := server.answer(buffer[:length]); err == nil {
			_, _ = socket.WriteTo(answer, peer)
		}
	}
}

func (n names) answer(packet []byte) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(packet)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	name := strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))
	addresses, exists := n.find(name)
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID:                 header.ID,
			Response:           true,
			Authoritative:      true,
			RecursionDesired:   header.RecursionDesired,
			RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{question},
	}
	if !exists {
		reply.RCode = dnsmessage.RCodeNameError
	}
	if question.Type == dnsmessage.TypeA {
		for _, address := range addresses {
			reply.Answers = append(reply.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: lifetime},
				Body:   &dnsmessage.AResource{A: [4]byte(address)},
			})
		}
	}
	if len(reply.Answers) == 0 {
		// Says for how long there is nothing.
		reply.Authorities = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{
				Name:  dnsmessage.MustNewName("."),
				Class: dnsmessage.ClassINET,
				TTL:   lifetime,
			},
			Body: &dnsmessage.SOAResource{
				NS:      dnsmessage.MustNewName("node."),
				MBox:    dnsmessage.MustNewName("nobody."),
				Serial:  1,
				Refresh: 60,
				Retry:   60,
				Expire:  60,
				MinTTL:  lifetime,
			},
		}}
	}
	return reply.Pack()
}

// find returns the IPv4 addresses of a name, and whether there is such a name.
func (n names) find(name string) ([]net.IP, bool) {
	if within, found := strings.CutSuffix(name, "."+clusterZone); found {
		parts := strings.Split(within, ".")
		if len(parts) != 2 {
			return nil, len(parts) < 2
		}
		service, err := n.services.Services(parts[1]).Get(parts[0])
		if err != nil {
			return nil, false
		}
		if service.Spec.ClusterIP == core.ClusterIPNone {
			return n.endpoints(service), true
		}
		return only4(service.Spec.ClusterIP), true
	}
	services, _ := n.services.List(labels.Everything())
	below := false
	for _, service := range services {
		for _, hostname := range strings.Split(service.Annotations[hostnameAnnotation], ",") {
			hostname = strings.ToLower(strings.TrimSpace(hostname))
			rest, wildcard := strings.CutPrefix(hostname, "*.")
			if name == hostname || (wildcard && strings.HasSuffix(name, "."+rest)) {
				return outside(service), true
			}
			below = below || strings.HasSuffix(hostname, "."+name)
		}
	}
	// A name that has names below it exists (RFC 8020).
	return nil, below || name == "" || strings.HasSuffix("."+clusterZone, "."+name)
}

// endpoints returns the addresses of a Service that has none of its own.
func (n names) endpoints(service *core.Service) []net.IP {
	selector := labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: service.Name})
	slices, _ := n.slices.EndpointSlices(service.Namespace).List(selector)
	var found []net.IP
	for _, slice := range slices {
		if !meta.IsControlledBy(slice, service) {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
			if ready || service.Spec.PublishNotReadyAddresses {
				found = append(found, only4(endpoint.Addresses...)...)
			}
		}
	}
	return found
}

// outside returns the addresses by which clients outside the cluster reach a Service.
func outside(service *core.Service) []net.IP {
	var balancer []string
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		balancer = append(balancer, ingress.IP)
	}
	for _, candidates := range [][]string{balancer, service.Spec.ExternalIPs, {service.Spec.ClusterIP}} {
		if found := only4(candidates...); len(found) > 0 {
			return found
		}
	}
	return nil
}

func only4(addresses ...string) []net.IP {
	var found []net.IP
	for _, address := range addresses {
		if four := net.ParseIP(address).To4(); four != nil {
			found = append(found, four)
		}
	}
	return found
}
