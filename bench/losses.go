package main

import "strings"

// Section 6: where others have the better figure, of all that lower is better
// of. The sections before tell it what they found.

// figure is one that was found, and of what.
type figure struct {
	name  string
	value float64
}

// compare notes who has a lower figure than ours.
func (r *report) compare(what string, print func(float64) string, ours float64, others ...figure) {
	var better []string
	for _, other := range others {
		if other.value < ours {
			better = append(better, other.name+" "+print(other.value))
		}
	}
	if better != nil {
		r.losses = append(r.losses, []string{what, print(ours), strings.Join(better, ", ")})
	}
}

// losses is section 6.
func losses(_ sizes, r *report) error {
	s := section{title: "6. Where we lose", text: "All that is lower than ours in the tables above, where lower is better."}
	if len(r.losses) > 0 {
		s.tables = []table{{head: []string{"", "ours", "others"}, rows: r.losses}}
	}
	r.add(s)
	return nil
}
