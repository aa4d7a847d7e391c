package main

// This file tests how the command connects to Redis: kinds of servers, prefixes, names,
// certificates and passwords.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/infuse-go/infuse"
	"github.com/infuse-go/infuse/internal/redistest"
)

// On a node of a Cluster, list showed only the circuits of that node.
func TestClusterIsDetected(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts many servers")
	}
	cluster := redistest.StartCluster(t, 3)
	whole := cliAt(t, "redis://"+cluster.Addrs()[0], "-cluster")
	for i := range 10 {
		whole.mustRun("set-state", "-force", fmt.Sprint("circuit", i), "open")
	}
	for _, node := range cluster.Addrs() {
		for _, url := range []string{"redis://" + node, node, "redis://" + node + "/0"} {
			out, errs, code := cliAt(t, url).exec("list")
			require.Zero(t, code, errs)
			require.Equal(t, 11, strings.Count(out, "\n"), out)
			require.Equal(t, "infuse: Redis is a Cluster: using all its nodes. With -cluster this check is skipped\n", errs)
		}
		for i := range 10 {
			out, _, code := cliAt(t, "redis://"+node).exec("show", fmt.Sprint("circuit", i))
			require.Zero(t, code)
			require.Regexp(t, `(?m)^state +open$`, out)
		}
		_, errs, code := cliAt(t, "redis://"+node+"/2").exec("list")
		require.Equal(t, exitUsage, code)
		require.Contains(t, errs, "which has database 0 only")
		_, errs, code = cliAt(t, "redis://"+node+"?db=0&max_retries=x").exec("list")
		require.Equal(t, exitUsage, code, errs)
	}
	// A subscriber of one node, and a prefix of another, are found from each node.
	storage := infuse.NewRedisStorage(cluster.Client(), infuse.RedisOptions{})
	t.Cleanup(func() { _ = storage.Close() })
	b, err := infuse.New("new", infuse.Config{Storage: storage})
	require.NoError(t, err)
	defer b.Stop()
	require.Eventually(t, func() bool {
		_, _, code := whole.exec("show", "new")
		return code == exitDone
	}, patience, 10*time.Millisecond)
	whole.mustRun("override", "new", "open", "-reason", "x", "-until", "1h")
	_, errs, code := whole.exec("list", "-prefix", "wrong:")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, `"infuse:"`)
}

func TestSentinelIsRejected(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts many servers")
	}
	sentinel := redistest.StartSentinel(t)
	_, errs, code := cliAt(t, "redis://"+sentinel.Addr()).exec("list")
	require.Equal(t, exitUsage, code)
	require.Contains(t, errs, "add ?master_name=NAME")
}

// Replies of HELLO in both protocols, and others.
func TestHelloMode(t *testing.T) {
	require.Equal(t, "cluster", helloMode([]any{"server", "redis", "mode", "cluster"}))
	require.Equal(t, "sentinel", helloMode(map[any]any{"mode": "sentinel"}))
	for _, odd := range []any{nil, "OK", []any{"mode"}, map[any]any{"mode": 3}} {
		require.Equal(t, "standalone", helloMode(odd))
	}
}

func TestWrongPrefixIsReported(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	admin := server.Client()
	for _, key := range []string{"session:{1}", "cart:{2}"} { // of other programs
		require.NoError(t, admin.HSet(t.Context(), key, "user", "ann", "v", "one").Err())
	}
	require.NoError(t, admin.Set(t.Context(), "lock:{3}", "1", 0).Err())
	d := cliAt(t, server.Addr())
	require.Contains(t, d.mustRun("list"), `no circuit has a record with the prefix "infuse:"`)

	cliAt(t, server.Addr(), "-prefix", "orders-prod:").mustRun("set-state", "-force", "prices", "open")
	cliAt(t, server.Addr(), "-prefix", "it's a {brace}:").mustRun("set-state", "-force", "two words", "open")
	others := `this Redis has circuits with other prefixes: "it's a {brace}:", "orders-prod:" (pass -prefix, or set INFUSE_PREFIX)` + "\n"
	for _, args := range [][]string{{"list"}, {"list", "-json"}, {"show", "prices"}, {"show", "prices", "-json"}, {"remove-override", "prices"},
		{"override", "prices", "open", "-reason", "x", "-until", "1h"}, {"set-state", "prices", "open"}} {
		out, errs, code := d.exec(args...)
		require.Equal(t, exitFailed, code, args)
		require.Empty(t, out)
		if args[0] == "override" || args[0] == "set-state" {
			errs = strings.Replace(errs, "; if the name is right, pass -force", "", 1)
		}
		require.True(t, strings.HasSuffix(errs, others), errs)
	}
	w := d.watches()
	require.Zero(t, w.stop())
	require.Contains(t, w.stderr.String(), `"orders-prod:"`)

	// A healthy fleet has no records; other prefixes on the same Redis are no mistake.
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	t.Cleanup(func() { _ = storage.Close() })
	d.storage, d.survey = storage, &redisStore{storage, server.Client(), defaultPrefix}
	d.watched("healthy")
	require.Contains(t, d.mustRun("list"), `no circuit has a record with the prefix "infuse:"`)

	// Only some of many prefixes are named; without the permission to search for subscribers there is no error.
	for i := range 10 {
		cliAt(t, server.Addr(), "-prefix", fmt.Sprintf("team%d:", i)).mustRun("set-state", "-force", "prices", "open")
	}
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", "-pubsub").Err())
	out, errs, code := cliAt(t, "redis://ann:secret@"+server.Addr(), "-prefix", "nobody's:").exec("list")
	require.Zero(t, code)
	require.Contains(t, out, "no circuit has a record")
	require.Contains(t, errs, "and maybe more (pass -prefix")
	require.Equal(t, maxPrefixes, strings.Count(errs, `:"`)-1, errs)
}

func TestPrefixFromEnvironment(t *testing.T) {
	server := redistest.Start(t)
	t.Setenv("INFUSE_PREFIX", "orders-prod:")
	d := cliAt(t, server.Addr())
	d.mustRun("set-state", "-force", "prices", "open")
	require.Regexp(t, "(?m)^prices +open", d.mustRun("list"))
	n, err := server.Client().Exists(t.Context(), "orders-prod:{prices}").Result()
	require.NoError(t, err)
	require.Equal(t, int64(1), n)
	require.Contains(t, d.mustRun("list", "-prefix", "orders-prod:"), "prices", "the flag")
	_, errs, code := d.exec("list", "-prefix", "infuse:")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, `"orders-prod:"`)
}

// An override of a misspelt name reported success.
func TestUnusedNameNeedsForce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	storage := infuse.NewRedisStorage(server.Client(), infuse.RedisOptions{})
	t.Cleanup(func() { _ = storage.Close() })
	d := cliAt(t, server.Addr())
	d.storage, d.survey = storage, &redisStore{storage, server.Client(), defaultPrefix}
	overrides := func(name string, more ...string) (string, int) {
		_, errs, code := d.exec(append([]string{"override", name, "open", "-reason", "x", "-until", "300ms"}, more...)...)
		return errs, code
	}
	errs, code := overrides("misspelt")
	require.Equal(t, exitFailed, code)
	require.Equal(t, "infuse: circuit misspelt is not used: no record, no history, and no process subscribes to it; if the name is right, pass -force\n", errs)
	n, err := server.Client().DBSize(t.Context()).Result()
	require.NoError(t, err)
	require.Zero(t, n, "nothing was written")

	d.watched("healthy") // only a subscriber
	_, code = overrides("healthy")
	require.Zero(t, code)

	_, code = overrides("later", "-force")
	require.Zero(t, code)
	_, code = overrides("later") // a record
	require.Zero(t, code)
	require.NoError(t, server.Client().Del(t.Context(), "infuse:{later}").Err())
	_, code = overrides("later") // only a history
	require.Zero(t, code)

	_, errs, code = d.exec("set-state", "misspelt", "open")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "-force")
	_, errs, code = d.exec("show", "misspelt")
	require.Equal(t, exitFailed, code)
	require.Equal(t, "infuse: circuit misspelt not found: no record, no history, and no process subscribes to it\n", errs)

	require.NoError(t, server.Client().Do(t.Context(), "ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", "-pubsub").Err())
	d.args[1] = "redis://ann:secret@" + server.Addr()
	errs, code = overrides("misspelt")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "pubsub")
	require.Contains(t, errs, "pass -force")
	require.Contains(t, d.mustRun("show", "misspelt"), "has no record: it is closed")
}

// authority is a CA.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes a certificate and its key. The first one is that of the authority.
func (a *authority) issue(name string, c *x509.Certificate) (cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.Subject = pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if a.cert == nil {
		a.cert, a.key = c, private
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &private.PublicKey, a.key)
	require.NoError(a.t, err)
	if a.cert == c {
		a.cert, err = x509.ParseCertificate(der)
		require.NoError(a.t, err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(a.t, err)
	write := func(suffix, kind string, der []byte) string {
		path := filepath.Join(a.dir, name+suffix)
		require.NoError(a.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	return write(".crt", "CERTIFICATE", der), write(".key", "PRIVATE KEY", secret)
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// A redis-server that requires client certificates.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	redistest.Require(t)
	a := newAuthority(t)
	ca := filepath.Join(a.dir, "ca.crt")
	loopback := []net.IP{net.ParseIP("127.0.0.1")}
	serverCert, serverKey := a.issue("server", &x509.Certificate{IPAddresses: loopback, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	cert, key := a.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	strange := newAuthority(t)
	strangeCert, strangeKey := strange.issue("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})

	addr := "127.0.0.1:" + strconv.Itoa(freePort(t))
	_, port, _ := net.SplitHostPort(addr)
	server := redistest.Start(t, "--tls-port", port, "--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", ca, "--tls-auth-clients", "yes")
	require.NoError(t, server.Client().Do(t.Context(), "ACL", "SETUSER", "default", ">secret").Err())

	for _, url := range []string{"rediss://:secret@" + addr, "redis://:secret@" + addr, ":secret@" + addr} {
		d := cliAt(t, url, "-tls-ca", ca, "-tls-cert", cert, "-tls-key", key)
		d.mustRun("set-state", "-force", "prices", "open")
		require.Regexp(t, "(?m)^prices +open", d.mustRun("list"))
		require.Zero(t, d.watches().stop())
	}
	for want, args := range map[string][]string{
		"certificate":                         {"-redis", "rediss://:secret@" + addr},                                                                                                  // an unknown CA
		"certificate required|reset|EOF|pipe": {"-redis", "rediss://:secret@" + addr, "-tls-ca", ca},                                                                                   // no client certificate
		"unknown|reset|EOF|pipe":              {"-redis", "rediss://:secret@" + addr, "-tls-ca", ca, "-tls-cert", strangeCert, "-tls-key", strangeKey},                                 // of another CA
		"belong together":                     {"-redis", "rediss://:secret@" + addr, "-tls-cert", cert},                                                                               //
		"-tls-ca: open":                       {"-redis", "rediss://:secret@" + addr, "-tls-ca", filepath.Join(a.dir, "none")},                                                         //
		"has no certificate":                  {"-redis", "rediss://:secret@" + addr, "-tls-ca", key},                                                                                  //
		"does not match":                      {"-redis", "rediss://:secret@" + addr, "-tls-cert", cert, "-tls-key", serverKey},                                                        //
		"has no TLS":                          {"-redis", "unix:///run/redis.sock", "-tls-ca", ca},                                                                                     //
		"match localhost":                     {"-redis", "rediss://:secret@" + strings.Replace(addr, "127.0.0.1", "localhost", 1), "-tls-ca", ca, "-tls-cert", cert, "-tls-key", key}, // another name
	} {
		var stdout, stderr output
		require.NotZero(t, run(t.Context(), append(args, "-timeout", "2s", "list"), &stdout, &stderr), want)
		require.Regexp(t, want, stderr.String())
		require.NotContains(t, stderr.String(), "secret")
	}
}

func TestPasswordFromEnvironment(t *testing.T) {
	server := redistest.Start(t)
	password := `p@ss/w%rd#?: "`
	require.NoError(t, server.Client().Do(t.Context(), "ACL", "SETUSER", "ann", "on", ">"+password, "~*", "&*", "+@all").Err())
	t.Setenv("INFUSE_REDIS_PASSWORD", password)
	cliAt(t, "redis://ann@"+server.Addr()).mustRun("set-state", "-force", "prices", "open")
	_, errs, code := cliAt(t, "redis://ann:wrong@"+server.Addr()).exec("list")
	require.Equal(t, exitFailed, code, "the password of the URL takes precedence")
	require.Contains(t, errs, "WRONGPASS")
	require.Contains(t, errs, "INFUSE_REDIS_PASSWORD")
	t.Setenv("INFUSE_REDIS_PASSWORD", "")
	require.Contains(t, cliAt(t, "redis://ann:"+url.PathEscape(password)+"@"+server.Addr()).mustRun("list"), "prices")
}

// No output contains four consecutive characters of the password, whatever is wrong. A
// part that is parsed as the host, as in redis://user:p@ssword, is no recognizable
// password.
func TestNoErrorShowsAPassword(t *testing.T) {
	server := redistest.Start(t)
	require.NoError(t, server.Client().Do(t.Context(), "ACL", "SETUSER", "user", "on", ">another", "~*", "+@all").Err())
	sensible := "redis://127.0.0.1:1"
	forms := [][]string{
		{"-redis", "redis://user:%s@127.0.0.1:1/0", "list"},
		{"-redis", "redis://:%s@127.0.0.1:1", "list"},
		{"-redis", "rediss://user:%s@127.0.0.1:1", "list"},
		{"-redis", "user:%s@127.0.0.1:1", "show", "a"},
		{"-redis", ":%s@127.0.0.1:1", "watch"},
		{"-redis", "redis://user:%s@127.0.0.1:1?addr=127.0.0.1:2", "list"},
		{"-redis", "redis://user:%s@127.0.0.1:1?master_name=x", "list"},
		{"-redis", "redis://127.0.0.1:1?master_name=x&password=%s", "list"},
		{"-redis", "redis://127.0.0.1:1?password=%s", "list"},
		{"-redis", "redis://user:%s@no-such-host.invalid:6379", "list"},
		{"-redis", "redis://user:%s@host:port", "list"},
		{"-redis", "redis://user:%s@127.0.0.1:1/abc", "list"},
		{"-redis", "redis://user:%s@127.0.0.1:1/0/1", "list"},
		{"-redis", "redis://user:%s@127.0.0.1:1?bla=1", "list"},
		{"-redis", "redis://user:%s@127.0.0.1:1?db=x", "list"},
		{"-redis", "redis://user:%s@127.0.0.1:1?addr=x", "list"},
		{"-redis", "redis:/user:%s@127.0.0.1:1", "list"},
		{"-redis", "redis:user:%s@127.0.0.1:1", "list"},
		{"-redis", "http://user:%s@127.0.0.1:1", "list"},
		{"-redis", "%s://user@127.0.0.1:1", "list"},
		{"-redis", "unix://user:%s@/no/such.sock", "list"},
		{"-redis", "unix://user:%s@", "list"},
		{"-redis", "redis://user:%s@" + server.Addr(), "list"},
		{"-redis", "redis://user:%s@" + server.Addr(), "set-state", "a", "open"},
		{"redis://user:%s@127.0.0.1:1", "list"},
		{"-timeout", "redis://user:%s@127.0.0.1:1", "list"},
		{"-cluster=redis://user:%s@127.0.0.1:1", "list"},
		{"-url=redis://user:%s@127.0.0.1:1", "list"},
		{"-redis", sensible, "help", "redis://user:%s@127.0.0.1:1"},
		{"-redis", sensible, "override", "a", "redis://user:%s@127.0.0.1:1", "-reason", "x", "-until", "1h"},
		{"-redis", sensible, "override", "a", "open", "-reason", "x", "-until", "redis://user:%s@127.0.0.1:1"},
		{"-redis", sensible, "set-state", "a", "redis://user:%s@127.0.0.1:1"},
	}
	roll := mathrand.New(mathrand.NewPCG(uint64(time.Now().UnixNano()), 1))
	alphabets := []string{"abcdXYZ0123456789", "ab01%@/:?#[]&=+ \\^\"'<>{}|;,!$()*~`", "%@/", "xyz:@.éß日", "0123456789", "a%4"}
	password := func() string {
		alphabet := []rune(alphabets[roll.IntN(len(alphabets))])
		n := 4 + roll.IntN(20)
		var b strings.Builder
		for range n {
			b.WriteRune(alphabet[roll.IntN(len(alphabet))])
		}
		return b.String()
	}
	shows := func(out, password string) string {
		runes := []rune(password)
		for i := range len(runes) - 3 {
			if part := string(runes[i : i+4]); strings.Contains(out, part) {
				return part
			}
		}
		return ""
	}
	var wait sync.WaitGroup
	slots := make(chan struct{}, 16)
	var mu sync.Mutex
	var shown []string
	try := func(password string, args []string) {
		var stdout, stderr output
		code := run(context.Background(), args, &stdout, &stderr)
		out := stdout.String() + stderr.String()
		mu.Lock()
		defer mu.Unlock()
		if part := shows(out, password); part != "" {
			shown = append(shown, fmt.Sprintf("%q of %q by %q: %s", part, password, args, out))
		}
		if code == exitDone || stderr.String() == "" {
			shown = append(shown, fmt.Sprintf("no error by %q: %s", args, out))
		}
	}
	fill := func(form []string, password string) (args []string) {
		args = append(args, "-timeout", "40ms")
		for _, arg := range form {
			args = append(args, strings.ReplaceAll(arg, "%s", password))
		}
		return args
	}
	fixed := []string{"12345/qvz@wjrx", "hxnter22/zz@9.9.9.9", "p@zzwxrd#1", "50%vff@hqme", "abc://defg", "9999/0"}
	random := 4
	if os.Getenv("CI") == "true" {
		random = 20
	}
	for i := range random + len(fixed) {
		secret := password()
		if i < len(fixed) {
			secret = fixed[i]
		}
		for _, form := range forms {
			for _, as := range []string{secret, url.QueryEscape(secret)} {
				wait.Add(1)
				slots <- struct{}{}
				go func() {
					defer func() { <-slots; wait.Done() }()
					try(secret, fill(form, as))
				}()
			}
		}
	}
	wait.Wait()
	// Long enough for an error that contains the address.
	try("31234#xyz", []string{"-timeout", "5s", "-redis", "redis://:31234#xyz@127.0.0.1:1", "list"})
	require.Empty(t, shown)

	for range 10 {
		secret := password()
		for _, at := range []string{"redis://user@" + server.Addr(), sensible, "redis://user@" + server.Addr() + "/abc", "redis://127.0.0.1:1?master_name=x", "redis://user@127.0.0.1:1?addr=127.0.0.1:2"} {
			t.Setenv("INFUSE_REDIS_PASSWORD", secret)
			t.Setenv("INFUSE_REDIS", "")
			try(secret, []string{"-timeout", "300ms", "-redis", at, "list"})
			t.Setenv("INFUSE_REDIS_PASSWORD", "")
			t.Setenv("INFUSE_REDIS", "redis://user:"+secret+"@127.0.0.1:1")
			try(secret, []string{"-timeout", "300ms", "list"})
		}
	}
	require.Empty(t, shown)
}
