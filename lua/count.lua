-- The last part of the script that adds to the count of a record, and to its window. It
-- is step.to in state.go and Window.add in window.go. At a bound it adds nothing: the
-- sender must evaluate the record first.
--
-- ARGV     7 add, 8 restarts (0 or 1), 9 after, 10 lower bound, 11 upper bound
--          12 width of a bucket, 13 buckets of calls: ;start,calls,failures each

local UNLIMITED = 2147483647
local add, after = tonumber(ARGV[7]), tonumber(ARGV[9])
local lower, upper = tonumber(ARGV[10]), tonumber(ARGV[11])
local before, w = whole(old[4]), old[5] or ''

if before <= lower or before >= upper then
  return reply('0', version(), old[2], old[3], old[4], w, record())
end
local n = math.max(math.min(before + add, UNLIMITED), 0)
if ARGV[8] == '1' and (add == 0 or n < upper) then
  n = math.min(after, UNLIMITED)
end
n = int(n)

-- added returns the window w with the buckets of counted. w contains the width, and the
-- start, calls and failures of each bucket; counted has no width.
local function added(w, width, counted)
  if counted == '' or width < 1 then return w end
  local all, old, failures = {}, tonumber(string.match(w, '^%d+') or 0), 0
  local function kept(all, width)
    local kept, failures = {}, 0
    for _, b in ipairs(all) do
      if b[1] > now - 10 * width and b[1] <= now + width then
        table.insert(kept, b)
        failures = failures + b[3]
      end
    end
    return failures > 0 and kept or {}
  end
  local function add(b, c, f) b[2], b[3] = math.min(b[2] + c, UNLIMITED), math.min(b[3] + f, UNLIMITED) end
  for s, c, f in string.gmatch(w, '(%d+),(%d+),(%d+)') do
    table.insert(all, { tonumber(s), tonumber(c), tonumber(f) })
  end
  all = kept(all, old)
  for f in string.gmatch(counted, ',%d+,(%d+)') do failures = failures + tonumber(f) end
  if #all == 0 and failures == 0 then return '' end
  local widest = #all > 0 and math.max(width, old) or width
  for s, c, f in string.gmatch(counted, '(%d+),(%d+),(%d+)') do
    s, c, f = tonumber(s), tonumber(c), tonumber(f)
    local i = #all
    while i > 0 and all[i][1] > s do i = i - 1 end
    local ends = i > 0 and all[i][1] + width or 0
    if s < ends then
      add(all[i], c, f)
    else
      table.insert(all, i + 1, { math.max(s - s % width, ends), c, f })
      if #all > 10 then
        local second = table.remove(all, 2)
        add(all[1], second[2], second[3])
      end
    end
  end
  all = kept(all, widest)
  if #all == 0 then return '' end
  local text = { int(widest) }
  for _, b in ipairs(all) do table.insert(text, int(b[1]) .. ',' .. int(b[2]) .. ',' .. int(b[3])) end
  return table.concat(text, ';')
end
w = added(w, tonumber(ARGV[12]), ARGV[13])

write('v', v, 'n', n, 'w', w)
if redis.call('PTTL', key) < life then
  redis.call('PEXPIRE', key, int(life))
end
return reply('1', v, old[2], old[3], n, w, record())
