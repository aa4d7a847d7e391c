// Package prominfuse shows the circuits of a process to Prometheus. A Collector
// reads them when it is scraped, so a call pays for nothing but
// infuse.Config.CountCalls. It is a module of its own, so that nobody else needs
// the client library.
//
// README.md lists the metrics. grafana-dashboard.json and alerts.yml beside it
// are a dashboard and alert rules for them.
package prominfuse
