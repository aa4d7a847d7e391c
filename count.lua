-- Adds to the count of a record, and to its window: step.to and the row's
-- beginning in state.go, Window.add in window.go. A count that has reached a
-- limit is to be judged before it counts on.
--
-- ARGV     7 add, 8 restarts (0 or 1), 9 after, 10 lower, 11 upper
--          12 width of a bucket, 13 calls, 14 failures

local UNLIMITED = 2147483647
local add, after = tonumber(ARGV[7]), tonumber(ARGV[9])
local lower, upper = tonumber(ARGV[10]), tonumber(ARGV[11])
local before, b, w = tonumber(old[4]) or 0, old[5] or '0', old[6] or ''

if before <= lower or before >= upper then
  return reply('0', old[1], old[3], old[4], b, w, old[7])
end
local n = math.max(math.min(before + add, UNLIMITED), 0)
local restarted = ARGV[8] == '1' and (add == 0 or n < upper)
if restarted then
  n = math.min(after, UNLIMITED)
end
if n > 0 and (before == 0 or restarted) then
  b = int(now)
end
n = int(n)

-- w is the width, and the start, calls and failures of each bucket.
local function added(w, width, calls, failures)
  if calls == 0 or width == 0 then return w end
  local old = tonumber(string.match(w, '^%d+') or 0)
  local all = {}
  for s, c, f in string.gmatch(w, '(%d+),(%d+),(%d+)') do
    s = tonumber(s)
    if s > now - 10 * old and s <= now + old then table.insert(all, { s, tonumber(c), tonumber(f) }) end
  end
  if #all > 0 or failures > 0 then
    if #all > 0 then width = math.max(width, old) end
    if #all == 0 or now >= all[#all][1] + width then table.insert(all, { now, 0, 0 }) end
    local last = all[#all]
    last[2], last[3] = math.min(last[2] + calls, UNLIMITED), math.min(last[3] + failures, UNLIMITED)
    if #all > 10 then
      local first = table.remove(all, 1)
      all[1][2], all[1][3] = math.min(all[1][2] + first[2], UNLIMITED), math.min(all[1][3] + first[3], UNLIMITED)
    end
  end
  if #all == 0 then return '' end
  for i, b in ipairs(all) do all[i] = int(b[1]) .. ',' .. int(b[2]) .. ',' .. int(b[3]) end
  return int(width) .. ';' .. table.concat(all, ';')
end
w = added(w, tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14]))

write('v', v, 'n', n, 'b', b, 'w', w)
if redis.call('PTTL', key) < life then
  redis.call('PEXPIRE', key, int(life))
end
return reply('1', v, old[3], n, b, w, old[7])
