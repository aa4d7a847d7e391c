package main

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The pictures of the fleets by their size.

const (
	falseOpeningsPlot = "plots/false-openings.svg"
	timeToOpenPlot    = "plots/time-to-open.svg"
)

// Colours that people tell apart who do not see all.
var (
	blue      = color.RGBA{0, 114, 178, 255}
	vermilion = color.RGBA{213, 94, 0, 255}
	green     = color.RGBA{0, 158, 115, 255}
)

// line is one of a plot.
type line struct {
	name   string
	color  color.Color
	shape  draw.GlyphDrawer
	width  vg.Length
	dashed bool
	points plotter.XYs
}

const (
	narrow = vg.Length(1.5)
	wide   = vg.Length(5)
)

// plots draws all pictures into the directory of the report.
func (r *report) plots(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(falseOpeningsPlot)), 0o755); err != nil {
		return err
	}
	openings, err1 := r.plotFalseOpenings()
	times, err2 := r.plotTimesToOpen()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return errors.Join(save(openings, filepath.Join(dir, falseOpeningsPlot)), save(times, filepath.Join(dir, timeToOpenPlot)))
}

// save writes a plot as SVG, in a font that is there wherever it is looked at.
func save(p *plot.Plot, file string) error {
	canvas := vgsvg.New(20*vg.Centimeter, 12*vg.Centimeter)
	page := draw.New(canvas)
	page.SetColor(color.White) // also where the reader's page is dark
	page.Fill(page.Rectangle.Path())
	p.Draw(draw.Crop(page, vg.Points(6), -vg.Points(20), vg.Points(6), -vg.Points(6)))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return err
	}
	svg := bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:'Liberation Sans',Arial,Helvetica,sans-serif;"))
	return os.WriteFile(file, svg, 0o644)
}

// plotFalseOpenings draws what simulated fleets met at the most errors: real ones
// do not live long enough.
func (r *report) plotFalseOpenings() (*plot.Plot, error) {
	share := r.sizes.errors[len(r.sizes.errors)-1]
	own := line{color: blue, shape: draw.RingGlyph{}, width: narrow}
	shared := line{name: gobreakerFleet.name, color: vermilion, shape: draw.BoxGlyph{}, width: narrow}
	local := line{name: localFleet.name, color: green, shape: draw.CrossGlyph{}, width: wide} // seen below that of Infuse
	byAll := int64(0)
	for _, b := range r.simulated {
		if b.weather.Errors != share {
			continue
		}
		byAll += b.ours.OpenedByAll
		own.add(b.members, b.met(b.ours))
		shared.add(b.members, b.met(b.shared))
		local.add(b.members, b.met(b.locals))
	}
	own.name = fmt.Sprintf("Infuse (shared openings: %d)", byAll)
	p, err := newPlot(fmt.Sprintf("False openings that a process meets at %g %% random errors, simulated", 100*share),
		"openings an hour in which calls run", []line{shared, local, own})
	if err != nil {
		return nil, err
	}
	p.Legend.Top, p.Legend.YOffs = true, -vg.Points(8)
	return p, nil
}

// met is how many openings a process meets in an hour in which its calls run:
// those of the fleet, and its own.
func (b besides) met(t tally) float64 {
	hours := float64(t.Ran) / b.weather.Rate / time.Hour.Seconds()
	return (float64(t.OpenedByAll)*float64(b.members) + float64(t.OpenedAlone)) / hours
}

func (r *report) plotTimesToOpen() (*plot.Plot, error) {
	var lines []line
	for _, kind := range []struct {
		name  string
		color color.Color
		shape draw.GlyphDrawer
		of    func(opening) reach
	}{
		{localFleet.name, green, draw.CrossGlyph{}, func(o opening) reach { return o.locals }},
		{"Infuse", blue, draw.RingGlyph{}, func(o opening) reach { return o.ours }},
		{gobreakerFleet.name, vermilion, draw.BoxGlyph{}, func(o opening) reach { return o.shared }},
	} {
		real := line{name: kind.name, color: kind.color, shape: kind.shape, width: narrow}
		for _, o := range r.realOutages {
			real.add(o.members, 1000*kind.of(o).last.Seconds())
		}
		simulated := line{name: kind.name + ", simulated", color: kind.color, shape: kind.shape, width: narrow, dashed: true}
		for _, o := range r.simulatedOutages {
			simulated.add(o.members, 1000*kind.of(o).last.Seconds())
		}
		lines = append(lines, real, simulated)
	}
	p, err := newPlot("From the beginning of an outage to the last call that reaches the service", fmt.Sprintf("ms (of %d)", r.sizes.watched.Milliseconds()), lines)
	if err != nil {
		return nil, err
	}
	p.Legend.YOffs = vg.Points(8)
	return p, nil
}

// add adds a point, if a logarithmic axis has it. A plot has the powers of ten:
// the library's own logarithmic scale places the label of an axis by its values.
func (l *line) add(members int, y float64) {
	if y > 0 {
		l.points = append(l.points, plotter.XY{X: math.Log10(float64(members)), Y: math.Log10(y)})
	}
}

// newPlot draws lines by the size of the fleet, both axes logarithmic.
func newPlot(title, what string, lines []line) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, "processes", what
	p.Title.TextStyle.Font.Variant, p.Title.TextStyle.Font.Size, p.Title.Padding = "Sans", vg.Points(13), vg.Points(8)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.LineStyle.Width, axis.Tick.LineStyle.Width = vg.Points(0.75), vg.Points(0.75)
		axis.Tick.Marker = plot.TickerFunc(powers)
		axis.Label.TextStyle.Font.Variant, axis.Label.TextStyle.Font.Size = "Sans", vg.Points(11)
		axis.Tick.Label.Font.Variant, axis.Tick.Label.Font.Size = "Sans", vg.Points(10)
	}
	p.Legend.TextStyle.Font.Variant, p.Legend.TextStyle.Font.Size = "Sans", vg.Points(10)
	p.Legend.Left, p.Legend.Padding, p.Legend.ThumbnailWidth = true, vg.Points(2), vg.Points(28)
	p.Legend.XOffs = vg.Points(8)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{225}, color.Gray{225}
	grid.Vertical.Width, grid.Horizontal.Width = vg.Points(0.75), vg.Points(0.75)
	p.Add(grid)
	for _, l := range lines {
		if len(l.points) == 0 {
			continue
		}
		drawn, points, err := plotter.NewLinePoints(l.points)
		if err != nil {
			return nil, err
		}
		drawn.Color, drawn.Width = l.color, l.width
		if l.dashed {
			drawn.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
		}
		points.GlyphStyle = draw.GlyphStyle{Color: l.color, Radius: vg.Points(3.5), Shape: l.shape}
		p.Add(drawn, points)
		p.Legend.Add(l.name, drawn, points)
	}
	p.Y.Min, p.Y.Max = math.Floor(p.Y.Min), math.Ceil(p.Y.Max)
	return p, nil
}

// powers are the ticks of an axis of powers of ten.
func powers(low, high float64) (all []plot.Tick) {
	for power := math.Floor(low); power <= high; power++ {
		for digit := 1.0; digit < 10; digit++ {
			at := power + math.Log10(digit)
			if at < low || at > high {
				continue
			}
			tick := plot.Tick{Value: at}
			if digit == 1 {
				tick.Label = label(math.Pow(10, power))
			}
			all = append(all, tick)
		}
	}
	return all
}

func label(x float64) string {
	if x >= 1 {
		return whole(int64(math.Round(x)))
	}
	return fmt.Sprint(x)
}
