package compare_test

// This file computes the tables of probabilities in docs/tuning.md.

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"
)

// tail returns the exact probability that f percent or more of n calls fail, if each fails
// with a probability of p percent.
func tail(n, p, f int64) float64 {
	sum := new(big.Int)
	for k := (n*f + 99) / 100; k <= n; k++ {
		ways := new(big.Int).Binomial(n, k)
		fail := new(big.Int).Exp(big.NewInt(p), big.NewInt(k), nil)
		succeed := new(big.Int).Exp(big.NewInt(100-p), big.NewInt(n-k), nil)
		sum.Add(sum, ways.Mul(ways, fail.Mul(fail, succeed)))
	}
	chance, _ := new(big.Rat).SetFrac(sum, new(big.Int).Exp(big.NewInt(100), big.NewInt(n), nil)).Float64()
	return chance
}

// streaksPerHour returns the number of streaks of n or more failures in an hour, at that
// many calls a second, if each call fails with probability p.
func streaksPerHour(calls, p float64, n int) float64 {
	return 3600 * calls * (1 - p) * math.Pow(p, float64(n))
}

// rounded formats a number with two significant digits, without an exponent.
func rounded(x float64) string {
	switch {
	case x < 1e-6:
		return "< 0.000001"
	case x >= 10:
		return strconv.FormatFloat(math.Round(x), 'f', -1, 64)
	}
	short, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 2, 64), 64)
	return strconv.FormatFloat(short, 'f', -1, 64)
}

// markdown returns a table, with a figure for each line and column.
func markdown(corner string, columns []string, lines []string, figure func(line, column int) string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s | %s |\n|---|%s\n", corner, strings.Join(columns, " | "), strings.Repeat("--:|", len(columns)))
	for i, line := range lines {
		fmt.Fprintf(&b, "| %s |", line)
		for j := range columns {
			fmt.Fprintf(&b, " %s |", figure(i, j))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestTableOfStreaks(t *testing.T) {
	limits, errors := []int{5, 10, 20}, []float64{0.01, 0.05, 0.1, 0.2, 0.3}
	requirePageHas(t, "../docs/tuning.md", markdown("FailMax", []string{"1 %", "5 %", "10 %", "20 %", "30 %"}, []string{"5", "10", "20"}, func(line, column int) string {
		return rounded(streaksPerHour(100, errors[column], limits[line]))
	}))
}

func TestTableOfRates(t *testing.T) {
	calls, errors := []int64{20, 50, 100, 200}, []int64{10, 30, 40, 45}
	requirePageHas(t, "../docs/tuning.md", markdown("calls in the window", []string{"10 % fail", "30 % fail", "40 % fail", "45 % fail"}, []string{"20", "50", "100", "200"}, func(line, column int) string {
		return rounded(tail(calls[line], errors[column], 50))
	}))
}
