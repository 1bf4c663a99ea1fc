// Command tidegate-test-pod is what runs in the pods of tests: a static program of a few megabytes.
//
//	pause           holds a pod's namespaces, as every pod's sandbox does
//	echo [ADDRESS]  answers each request with what it saw of it, as JSON; default address is :8080
//	fetch URL       prints what a GET is answered with; by https with the pod's CA and token
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// seen is what echo answers.
type seen struct {
	Hostname string              `json:"hostname"`
	Peer     string              `json:"peer"`
	Method   string              `json:"method"`
	Host     string              `json:"host"`
	Path     string              `json:"path"`
	Proto    string              `json:"proto"`
	Headers  map[string][]string `json:"headers"`
}

func main() {
	if len(os.Args) < 2 {
		fail("usage: tidegate-test-pod pause|echo [ADDRESS]|fetch URL")
	}
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	switch os.Args[1] {
	case "pause":
		pause(ended)
	case "echo":
		address := ":8080"
		if len(os.Args) > 2 {
			address = os.Args[2]
		}
		echo(ended, address)
	case "fetch":
		fetch(os.Args[2])
	default:
		fail("no part " + os.Args[1])
	}
}

// pause waits for the end and, being process 1 of its namespace, for the children of others.
func pause(ended context.Context) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case <-ended.Done():
			return
		case <-children:
			for {
				pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
				if pid <= 0 {
					break
				}
			}
		}
	}
}

func echo(ended context.Context, address string) {
	hostname, _ := os.Hostname()
	server := &http.Server{
		Addr:              address,
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
			answer.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(answer).Encode(seen{
				Hostname: hostname,
				Peer:     request.RemoteAddr,
				Method:   request.Method,
				Host:     request.Host,
				Path:     request.URL.RequestURI(),
				Proto:    request.Proto,
				Headers:  request.Header,
			})
		}),
	}
	go func() {
		<-ended.Done()
		patience, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = server.Shutdown(patience)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fail(err.Error())
	}
}

// Where a pod finds what its service account is worth.
const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func fetch(url string) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		fail(err.Error())
	}
	client := &http.Client{Timeout: 10 * time.Second}
	if request.URL.Scheme == "https" {
		authorities := x509.NewCertPool()
		if text, err := os.ReadFile(account + "ca.crt"); err == nil {
			authorities.AppendCertsFromPEM(text)
		}
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authorities}}
		if token, err := os.ReadFile(account + "token"); err == nil {
			request.Header.Set("Authorization", "Bearer "+string(token))
		}
	}
	answer, err := client.Do(request)
	if err != nil {
		fail(err.Error())
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		fail(err.Error())
	}
	if answer.StatusCode >= 400 {
		fail(answer.Status)
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(1)
}
