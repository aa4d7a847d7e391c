// Package prominfuse exports metrics of the circuits of a process to Prometheus. A
// Collector reads them at each scrape, so calls cost no more than with
// infuse.Config.CountCalls alone. It is a separate module, so that other users do not
// depend on the client library.
//
// README.md lists the metrics. grafana-dashboard.json and alerts.yml are a dashboard
// and alert rules for them.
package prominfuse
