-- The second part of the scripts that write: ends the script if the record is
-- not as its sender knows it.
--
-- ARGV     3 which is compared: v or g, 4 what the sender has seen of it
--          5 until when that holds
--          6 how long the key lives

local v, life = version(), tonumber(ARGV[6])
local is = v
if ARGV[3] == 'g' and string.match(v, '^%d+$') then is = short(old[2]) end
if duplicate() or is ~= ARGV[4] or now >= tonumber(ARGV[5]) then
  return reply(duplicate() and '2' or '0', v, old[2], old[3], old[4], old[5], old[6])
end
if problem then redis.call('DEL', key) end -- of another type, and the sender knows it

-- Versions follow the time, so that none is given twice, not even after the
-- key was lost.
local last = whole(v)
v = int(math.max(last < 2 ^ 52 and last + 1 or 0, time[1] * 1000000 + time[2]))

-- write sets the fields and the number. If there are more than 512 sources, it
-- forgets the half that reported longest ago.
local function write(...)
  if number == '' then return redis.call('HSET', key, ...) end
  redis.call('HSET', key, source, number .. ' ' .. int(now), ...)
  if old[7] or redis.call('HLEN', key) <= 6 + 512 then return end
  local all, sources = redis.call('HGETALL', key), {}
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 's:' then
      table.insert(sources, { all[i], whole(string.sub(all[i + 1], 22, 41)) })
    end
  end
  table.sort(sources, function(a, b) return a[2] < b[2] end)
  for i = 1, math.floor(#sources / 2) do
    redis.call('HDEL', key, sources[i][1])
  end
end
