-- The first half of count.lua and of swap.lua: reads a record, and ends the
-- script where the record is not as its sender knows it.
--
-- KEYS[1]  the hash that storage_redis.go describes
-- ARGV     1 source, 2 number (20 digits, or none)
--          3 which is compared: v or g, 4 what the sender has seen of it
--          5 until when that holds
--          6 how long the key lives
-- Reply    status (0 not as seen, 1 done, 2 heard before), v, now, t, n, b, w, r
--
-- Times are whole milliseconds. Numbers are only ever printed by int.

local key, number, seen, life = KEYS[1], ARGV[2], ARGV[4], tonumber(ARGV[6])

local function int(n) return string.format('%.0f', n) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local source = 's:' .. ARGV[1]
local old = redis.pcall('HMGET', key, 'v', 'g', 't', 'n', 'b', 'w', 'r', source)
if old.err then
  if string.match(old.err, '^%u+') ~= seen then return old end
  redis.call('DEL', key) -- of another type, and the sender knows it
  old, seen = {}, '0'
end
local v = old[1] or (redis.call('HLEN', key) == 0 and '0' or 'none') -- none: a stranger's hash

local function reply(status, v, t, n, b, w, r)
  local function short(s) return string.sub(s or '0', 1, 20) end
  return { status, short(v), int(now), short(t), short(n), short(b), string.sub(w or '', 1, 601), string.sub(r or '', 1, 262145) }
end

local heard = number ~= '' and string.sub(old[8] or '', 1, 20) >= number
local is = (ARGV[3] == 'v' or v == 'none') and v or old[2] or '0'
if heard or is ~= seen or now >= tonumber(ARGV[5]) then
  return reply(heard and '2' or '0', v, old[3], old[4], old[5], old[6], old[7])
end

-- Versions follow the time, so that none is given twice, not even after the
-- key was lost.
local last = tonumber(v) or 0
v = int(math.max(last < 2 ^ 52 and last + 1 or 0, time[1] * 1000000 + time[2]))

-- write sets the fields and the number. Where there are more than 512 sources,
-- it forgets the half that was not heard of for longest.
local function write(...)
  if number == '' then return redis.call('HSET', key, ...) end
  redis.call('HSET', key, source, number .. ' ' .. int(now), ...)
  if old[8] or redis.call('HLEN', key) <= 7 + 512 then return end
  local all, sources = redis.call('HGETALL', key), {}
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 's:' then
      table.insert(sources, { all[i], tonumber(string.sub(all[i + 1], 22)) or 0 })
    end
  end
  table.sort(sources, function(a, b) return a[2] < b[2] end)
  for i = 1, math.floor(#sources / 2) do
    redis.call('HDEL', key, sources[i][1])
  end
end

