// The server's certificate: our own, because the stock simulator's is refused by today's OpenSSL.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// certificate loads -cert and -key, or writes them first: a restart then keeps the thumbprint.
func certificate(o *options) (tls.Certificate, error) {
	if o.cert == "" {
		o.cert = filepath.Join(o.dir, "vcenter.pem")
	}
	if o.key == "" {
		o.key = strings.TrimSuffix(o.cert, filepath.Ext(o.cert)) + ".key"
	}
	if _, err := os.Stat(o.cert); os.IsNotExist(err) {
		if err := writeCertificate(o.cert, o.key); err != nil {
			return tls.Certificate{}, err
		}
	}
	return tls.LoadX509KeyPair(o.cert, o.key)
}

func writeCertificate(cert, key string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "vcenter-sim"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(5, 0, 0),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.ParseIP("127.0.0.1")},
		// A leaf that is its own authority, so that clients can name this one file as the CA they trust.
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(cert), filepath.Dir(key)} {
		if err := os.MkdirAll(dir, 0700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0600); err != nil {
		return err
	}
	return os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0644)
}

// thumbprint writes the digest of the certificate as vSphere does: pairs of capitals with colons.
func thumbprint(pair tls.Certificate, kind string) string {
	var sum []byte
	switch kind {
	case "sha1":
		s := sha1.Sum(pair.Certificate[0])
		sum = s[:]
	default:
		s := sha256.Sum256(pair.Certificate[0])
		sum = s[:]
	}
	return strings.ReplaceAll(strings.ToUpper(fmt.Sprintf("% x", sum)), " ", ":")
}
